"""What the shapes of a call give: its geometry and the shapes of its results. Checked, and kept for the latest calls.

functional asks; a shape that was seen lately is not checked again, and a new one costs what it would without.
"""

import functools

from . import checks
from .checks import Parameters
from .geometry import Geometry

KEPT = 256  # calls


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
