"""What the shapes of a call give: its geometry and the shapes of its results. Checked, and kept for the latest calls.

functional asks; a shape that was seen lately is not checked again, and a new one costs what it would without.
"""

import functools
from collections.abc import Sequence
from typing import Any

from . import checks
from .checks import OUT_NAMES, Algorithm, Array, Described, Parameters
from .geometry import Geometry

KEPT = 256  # calls


@functools.lru_cache(maxsize=KEPT)
def plain_forward(
    engine: Any,
    p: Parameters,
    algorithm: str,
    input_dtype: Any,
    input_shape: tuple[int, ...],
    weight_dtype: Any,
    weight_shape: tuple[int, ...],
    bias: Any,
    out: Any,
) -> tuple[Algorithm, Geometry, tuple[int, ...]]:
    """All that is checked of a call on NumPy arrays by what they are, not by where: the algorithm and :func:`forward`.

    `bias` is (dtype, shape) and `out` (dtype, shape, strides); False where there is none.
    """
    x, w = Described(input_dtype, input_shape), Described(weight_dtype, weight_shape)
    b, y = (Described(*given) if given else None for given in (bias, out))
    for name, array in (("input", x), ("weight", w), ("bias", b), ("out", y)):
        if array is not None:
            checks.floating(array, name, engine.dtypes)
    return of_forward(engine, p, algorithm, None, x, w, b, y)


def kept_forward(
    engine: Any, p: Parameters, algorithm: object, output_size: object, *arrays: Any
) -> tuple[Algorithm, Geometry, tuple[int, ...]]:
    """What :func:`of_forward` gives, kept for calls without an output size whose arrays the engine describes alike."""
    if output_size is None and type(algorithm) is str:
        return _described_forward(engine, p, algorithm, *_described(engine, arrays))
    return of_forward(engine, p, algorithm, output_size, *arrays)


@functools.lru_cache(maxsize=KEPT)
def _described_forward(
    engine: Any, p: Parameters, algorithm: str, *described: Any
) -> tuple[Algorithm, Geometry, tuple[int, ...]]:
    return of_forward(engine, p, algorithm, None, *described)


def _described(engine: Any, arrays: Sequence[Any]) -> list[Any]:
    return [array if array is None else engine.described(array) for array in arrays]


def of_forward(
    engine: Any, p: Parameters, algorithm: object, output_size: object, x: Array, w: Array, b: Array | None, y: Any
) -> tuple[Algorithm, Geometry, tuple[int, ...]]:
    """The algorithm, the geometry and the shape of the output of arrays that fit."""
    chosen = checks.algorithm(algorithm, engine.algorithms)
    checks.same_dtype({"input": x, "weight": w, "bias": b})
    checks.summed_once(x.dtype, chosen)
    size = checks.output_size(output_size, (len(x.shape),))
    geometry, shape = forward(p, size, x.shape, w.shape, None if b is None else b.shape)
    if y is not None:
        checks.output_array(y, "out", shape, x.dtype)
    return chosen, geometry, shape


@functools.lru_cache(maxsize=KEPT)
def plain_backward(
    engine: Any,
    p: Parameters,
    algorithm: str,
    input_length: int | None,
    weight_wanted: bool,
    grad_output_dtype: Any,
    grad_output_shape: tuple[int, ...],
    weight_dtype: Any,
    weight_shape: tuple[int, ...],
    input: Any,
    outs: Any,
) -> tuple[Algorithm, Geometry, tuple[tuple[int, ...], ...]]:
    """The twin of :func:`plain_forward`; `outs` describe three arrays, or False where all are made."""
    dy, w = Described(grad_output_dtype, grad_output_shape), Described(weight_dtype, weight_shape)
    x, *results = (Described(*given) if given else None for given in (input, *(outs or (False,) * len(OUT_NAMES))))
    names = ("grad_output", "input", "weight", *OUT_NAMES)
    for name, array in zip(names, (dy, x, w, *results), strict=True):
        if array is not None:
            checks.floating(array, name, engine.dtypes)
    return of_backward(engine, p, algorithm, input_length, weight_wanted, dy, x, w, results)


def kept_backward(
    engine: Any, p: Parameters, algorithm: object, input_length: object, weight_wanted: bool, dy: Any, x: Any, w: Any,
    results: Sequence[Any],
) -> tuple[Algorithm, Geometry, tuple[tuple[int, ...], ...]]:  # fmt: skip
    """The twin of :func:`kept_forward`."""
    if type(algorithm) is str and (input_length is None or type(input_length) is int):
        described = _described(engine, (dy, x, w, *results))
        return _described_backward(engine, p, algorithm, input_length, weight_wanted, *described)
    return of_backward(engine, p, algorithm, input_length, weight_wanted, dy, x, w, results)


@functools.lru_cache(maxsize=KEPT)
def _described_backward(
    engine: Any, p: Parameters, algorithm: str, input_length: int | None, weight_wanted: bool, dy: Any, x: Any, w: Any,
    *results: Any,
) -> tuple[Algorithm, Geometry, tuple[tuple[int, ...], ...]]:  # fmt: skip
    return of_backward(engine, p, algorithm, input_length, weight_wanted, dy, x, w, results)


def of_backward(
    engine: Any,
    p: Parameters,
    algorithm: object,
    input_length: object,
    weight_wanted: bool,
    dy: Array,
    x: Array | None,
    w: Array,
    results: Sequence[Any],
) -> tuple[Algorithm, Geometry, tuple[tuple[int, ...], ...]]:
    """The algorithm, the geometry and the shapes of the gradients of arrays that fit."""
    chosen = checks.algorithm(algorithm, engine.algorithms)
    checks.same_dtype({"grad_output": dy, "input": x, "weight": w})
    checks.summed_once(dy.dtype, chosen)
    input_shape = None if x is None else x.shape
    length = checks.input_length(input_length, input_shape, weight_wanted)
    geometry, shapes = backward(p, length, dy.shape, input_shape, w.shape)
    for name, array, shape in zip(OUT_NAMES, results, shapes, strict=True):
        if array is not None:
            checks.output_array(array, name, shape, dy.dtype)
    return chosen, geometry, shapes


@functools.lru_cache(maxsize=KEPT)
def forward(
    p: Parameters,
    output_size: int | None,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None,
) -> tuple[Geometry, tuple[int, ...]]:
    """The geometry and the shape of the output of shapes that fit."""
    sizes = checks.sizes(input_shape, weight_shape, p.groups)
    if bias_shape is not None:
        checks.bias_shape(bias_shape, sizes.out_channels)
    geometry = checks.forward_geometry(p, sizes.kernel_size, sizes.input_length, output_size)
    return geometry, (*input_shape[:-2], sizes.out_channels, geometry.output_length)


@functools.lru_cache(maxsize=KEPT)
def backward(
    p: Parameters,
    input_length: int,
    grad_output_shape: tuple[int, ...],
    input_shape: tuple[int, ...] | None,
    weight_shape: tuple[int, ...],
) -> tuple[Geometry, tuple[tuple[int, ...], ...]]:
    """The geometry and the shapes of the gradients of shapes that fit."""
    in_channels, channels_out, kernel_size = checks.weight_sizes(weight_shape, p.groups)
    out_channels = channels_out * p.groups
    if input_shape is None:
        checks.grad_output_shape(grad_output_shape, (None,) * (len(grad_output_shape) == 3) + (out_channels, None))
    else:
        checks.sizes(input_shape, weight_shape, p.groups)
        checks.grad_output_shape(grad_output_shape, (*input_shape[:-2], out_channels, None))
    geometry = checks.backward_geometry(p, kernel_size, input_length, grad_output_shape[-1])
    return geometry, ((*grad_output_shape[:-2], in_channels, input_length), weight_shape, (out_channels,))
