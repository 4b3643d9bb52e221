"""The definition of the operation and of its gradients, one output element at a time, in float64.

Slow and plain: the oracle that tests and benchmarks hold every kernel against. It shares no code with them, not even
the arithmetic of lengths and crops.

With u = l + crop_left, the place of output sample l in the uncropped output, input sample t meets it through tap k
exactly where t·stride + k·dilation = u:

    y[n, o, l]  = bias[o] + Σ_i Σ_{t, k: t·stride + k·dilation = u} x[n, i, t]·w[i, o, k]
    dx[n, i, t] = Σ_o Σ_k w[i, o, k]·dy[n, o, t·stride + k·dilation - crop_left]
    dw[i, o, k] = Σ_n Σ_t x[n, i, t]·dy[n, o, t·stride + k·dilation - crop_left]
    db[o]       = Σ_n Σ_l dy[n, o, l]

with i running over the C_in/groups input channels of o's group, o over the C_out/groups output channels of i's group,
and every sum over what lies inside the arrays. `weight[i, j, k]` belongs to the j-th output channel of i's group.

Source of the definition: the documentation of torch.nn.ConvTranspose1d, as the adjoint of a strided, dilated, grouped
cross-correlation.
"""

from typing import Any

import numba
import numpy as np


def conv_transpose1d(
    input: Any,
    weight: Any,
    bias: Any = None,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int = 0,
    groups: int = 1,
    dilation: int = 1,
    *,
    output_size: int | None = None,
    at: Any = None,
) -> Any:
    """The output (N, C_out, L_out) in float64, or its elements at the rows (n, o, l) of `at`; nothing is checked.

    Parameters are those of :func:`numba_ctconv.conv_transpose1d`, integers as plain ints.
    """
    x, w = _doubles(input, 3), _doubles(weight, 3)
    b = np.zeros(w.shape[1] * groups) if bias is None else _doubles(bias, 1)
    left, right = padding if isinstance(padding, tuple) else (padding, padding - output_padding)
    length = (x.shape[2] - 1) * stride - left - right + dilation * (w.shape[2] - 1) + 1
    shape = (x.shape[0], w.shape[1] * groups, length if output_size is None else output_size)
    where = _everywhere(shape) if at is None else at
    values = _output(x, w, b, stride, dilation, groups, left, where)
    return values if at is not None else values.reshape(shape if input.ndim == 3 else shape[1:])


def conv_transpose1d_backward(
    grad_output: Any,
    input: Any,
    weight: Any,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int = 1,
    *,
    at: tuple[Any, Any, Any] = (None, None, None),
) -> tuple[Any, Any, Any]:
    """The gradients of input, weight and bias in float64, or their elements at the rows of `at`; nothing is checked.

    Rows are (n, i, t) for the input, (i, j, k) for the weight and (o,) for the bias.
    """
    dy, x, w = _doubles(grad_output, 3), _doubles(input, 3), _doubles(weight, 3)
    left = padding[0] if isinstance(padding, tuple) else padding
    at_input, at_weight, at_bias = at
    dx = _grad_input(dy, w, stride, dilation, groups, left, _everywhere(x.shape) if at_input is None else at_input)
    dw = _grad_weight(dy, x, stride, dilation, groups, left, _everywhere(w.shape) if at_weight is None else at_weight)
    db = _grad_bias(dy, _everywhere(dy.shape[1:2]) if at_bias is None else at_bias)
    return (
        dx.reshape(input.shape) if at_input is None else dx,
        dw.reshape(weight.shape) if at_weight is None else dw,
        db,
    )


def _doubles(array: Any, dimensions: int) -> Any:
    wide = np.ascontiguousarray(array, np.float64)
    return wide if wide.ndim == dimensions else wide[None]


def _everywhere(shape: tuple[int, ...]) -> Any:
    """Every index of an array, one a row."""
    return np.indices(shape).reshape(len(shape), -1).T.copy()


@numba.njit
def _output(x, w, b, stride, dilation, groups, crop_left, where):
    in_channels, out_channels = x.shape[1] // groups, w.shape[1]  # of one group
    values = np.empty(len(where))
    for e in range(len(where)):
        n, o, l = where[e]
        group, j = o // out_channels, o % out_channels
        total = b[o]
        for i in range(group * in_channels, (group + 1) * in_channels):
            for k in range(w.shape[2]):
                distance = l + crop_left - k * dilation
                if distance % stride == 0 and 0 <= distance // stride < x.shape[2]:
                    total += x[n, i, distance // stride] * w[i, j, k]
        values[e] = total
    return values


@numba.njit
def _grad_input(dy, w, stride, dilation, groups, crop_left, where):
    in_channels, out_channels = w.shape[0] // groups, w.shape[1]  # of one group
    values = np.empty(len(where))
    for e in range(len(where)):
        n, i, t = where[e]
        group = i // in_channels
        total = 0.0
        for j in range(out_channels):
            for k in range(w.shape[2]):
                l = t * stride + k * dilation - crop_left
                if 0 <= l < dy.shape[2]:
                    total += w[i, j, k] * dy[n, group * out_channels + j, l]
        values[e] = total
    return values


@numba.njit
def _grad_weight(dy, x, stride, dilation, groups, crop_left, where):
    in_channels, out_channels = x.shape[1] // groups, dy.shape[1] // groups  # of one group
    values = np.empty(len(where))
    for e in range(len(where)):
        i, j, k = where[e]
        o = i // in_channels * out_channels + j
        total = 0.0
        for n in range(x.shape[0]):
            for t in range(x.shape[2]):
                l = t * stride + k * dilation - crop_left
                if 0 <= l < dy.shape[2]:
                    total += x[n, i, t] * dy[n, o, l]
        values[e] = total
    return values


@numba.njit
def _grad_bias(dy, where):
    values = np.empty(len(where))
    for e in range(len(where)):
        total = 0.0
        for n in range(dy.shape[0]):
            for l in range(dy.shape[2]):
                total += dy[n, where[e, 0], l]
        values[e] = total
    return values
