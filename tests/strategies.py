"""Hypothesis strategies: the whole parameter space of the operation on small arrays, and arrays of every layout."""

import numpy as np
from hypothesis import strategies as st

from numba_ctconv.benchmark.workloads import Problem


@st.composite
def problems(draw):
    """Any valid problem: K below and above the stride, common factors, crops beyond the reach and of either sign."""
    stride, dilation, kernel_size = draw(st.integers(1, 7)), draw(st.integers(1, 6)), draw(st.integers(1, 9))
    groups = draw(st.integers(1, 3))
    input_length = draw(st.integers(1, 14))
    full = (input_length - 1) * stride + dilation * (kernel_size - 1) + 1
    output_padding, output_size = 0, None
    if draw(st.booleans()):
        output_padding = draw(st.integers(0, max(stride, dilation) - 1))
        padding = draw(st.integers(0, (full + output_padding) // 2))
        if draw(st.booleans()) and full - 2 * padding >= 0:
            output_size = full - 2 * padding + draw(st.integers(0, stride - 1))
    else:
        left = draw(st.integers(-9, full + 5))
        padding = (left, draw(st.integers(-9, full - left)))
        if draw(st.booleans()):
            output_size = draw(st.integers(0, full + 9))
    return Problem(
        name=f"drawn {draw(st.integers(0, 9))}",
        batch=draw(st.sampled_from([None, 0, 1, 1, 2, 3])),
        in_channels=groups * draw(st.integers(1, 6)),
        out_channels=groups * draw(st.integers(1, 5)),
        input_length=input_length,
        kernel_size=kernel_size,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        groups=groups,
        dilation=dilation,
        bias=draw(st.booleans()),
        output_size=output_size,
    )


def _transposed(a):
    return np.ascontiguousarray(a.T).T


def _reversed(a):
    return np.ascontiguousarray(a[..., ::-1])[..., ::-1]


def _strided(a):
    """Every second element of every dimension of a larger array of NaN."""
    larger = np.full([2 * n + 1 for n in a.shape], np.nan, a.dtype)
    view = larger[tuple(slice(1, 2 * n + 1, 2) for n in a.shape)]
    view[...] = a
    return view


def _unaligned(a):
    memory = np.zeros(a.nbytes + 1, np.uint8)
    view = memory[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _read_only(a):
    copy = a.copy()
    copy.flags.writeable = False
    return copy


LAYOUTS = {
    "contiguous": np.copy,
    "transposed": _transposed,
    "reversed": _reversed,
    "strided": _strided,
    "unaligned": _unaligned,
    "read_only": _read_only,
}
OUT_LAYOUTS = {name: layout for name, layout in LAYOUTS.items() if name != "read_only"}
