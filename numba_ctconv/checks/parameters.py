"""The integers of a call and the geometry that they make."""

from functools import lru_cache
from typing import NamedTuple

from ..geometry import Crops, Geometry, Plan, crops_of, geometry_of, geometry_to, plan
from .wording import index, refuse, shown

LARGEST_INDEX = 2**62 - 1  # sums and differences of two such integers still fit the kernels' int64
LARGEST_STEP = 2**31 - 1  # and so do products of two of these


class Parameters(NamedTuple):
    """The integers of a call, validated; padding is an int as torch has it, or a pair of crops."""

    stride: int
    padding: int | Crops
    output_padding: int | None
    groups: int
    dilation: int


def integer(value: object, name: str, minimum: int | None = None, maximum: int = LARGEST_INDEX) -> int:
    """An int from anything with `__index__` but bool, or from a sequence of one such."""
    if type(value) is not int:
        if isinstance(value, list | tuple):
            if len(value) != 1:
                refuse(ValueError, name, "an integer or a sequence of one integer", value)
            value = value[0]
        value = index(value, name)
    if minimum is not None and value < minimum:
        refuse(ValueError, name, f"at least {minimum}", value)
    if not -maximum <= value <= maximum:
        refuse(ValueError, name, f"at most {maximum}" if value > 0 else f"at least {-maximum}", value)
    return value


def padding(value: object) -> int | Crops:
    """A non-negative int, or the pair of crops that a sequence of two integers of either sign is."""
    expected = "an integer or a pair (crop_left, crop_right)"
    if isinstance(value, list | tuple):
        if len(value) == 2:
            return Crops(integer(value[0], "padding[0]"), integer(value[1], "padding[1]"))
        if len(value) != 1:
            refuse(ValueError, "padding", expected, value)
        value = value[0]
    p = integer(index(value, "padding", expected), "padding")
    if p < 0:
        raise ValueError(
            f"`padding` must be at least 0 as an integer; got padding={p}. "
            "To extend the output, give a pair (crop_left, crop_right): its crops may be negative."
        )
    return p


def parameters(
    stride: object,
    padding_: object,
    output_padding: object,
    groups: object,
    dilation: object,
    *,
    derived: bool = False,
) -> Parameters:
    """Validate the integers of a call; `output_padding` may be None where it is derived from the length of an array."""
    ints = type(stride) is type(padding_) is type(groups) is type(dilation) is int
    if ints and (type(output_padding) is int or (derived and output_padding is None)):
        return _of_ints(stride, padding_, output_padding, groups, dilation)
    return _parameters(stride, padding_, output_padding, groups, dilation, derived=derived)


def _parameters(
    stride: object, padding_: object, output_padding: object, groups: object, dilation: object, *, derived: bool
) -> Parameters:
    s = integer(stride, "stride", 1, LARGEST_STEP)
    p = padding(padding_)
    op = None if derived and output_padding is None else integer(output_padding, "output_padding", 0)
    g = integer(groups, "groups", 1)
    d = integer(dilation, "dilation", 1, LARGEST_STEP)
    if op and isinstance(p, Crops):
        raise ValueError(
            "`output_padding` must be 0 where `padding` is a pair of crops, which already says where the output ends; "
            f"got output_padding={op}, padding={tuple(p)}"
        )
    return Parameters(s, p, op, g, d)


@lru_cache(maxsize=256)
def _of_ints(stride: object, padding_: object, output_padding: object, groups: object, dilation: object) -> Parameters:
    """Those of a layer that was seen lately, all of them ints, and `output_padding` None where it may be."""
    return _parameters(stride, padding_, output_padding, groups, dilation, derived=True)


def smaller_output_padding(output_padding: int, stride: int, dilation: int) -> None:
    """Hold to torch's rule: less output padding than the stride or the dilation."""
    if output_padding and output_padding >= max(stride, dilation):
        raise ValueError(
            "`output_padding` must be smaller than `stride` or `dilation`; "
            f"got output_padding={output_padding}, stride={stride}, dilation={dilation}"
        )


def output_size(value: object, dimensions: tuple[int, ...]) -> int | None:
    """The length that an int or torch's sequence asks for; the sequence has one element or one a dimension."""
    if value is None:
        return None
    if isinstance(value, list | tuple):
        if len(value) != 1 and len(value) not in dimensions:
            expected = " or ".join(f"{n}" for n in (1, *dimensions))
            refuse(ValueError, "output_size", f"an integer or a sequence of {expected} integers", value)
        value = value[-1]
    return integer(value, "output_size", 0)


def forward_geometry(p: Parameters, kernel_size: int, input_length: int, size: int | None) -> Geometry:
    """The geometry of a forward call, whose length `output_size` may decide."""
    layer = _plan(p, kernel_size, input_length)
    if size is None:
        op = p.output_padding or 0
        smaller_output_padding(op, p.stride, p.dilation)
        geometry = geometry_of(layer, crops_of(p.padding, op), input_length)
        if geometry.output_length < 0:
            left, right = geometry.crops
            raise ValueError(
                f"`padding` must leave an output of at least 0 samples; got padding={shown(p.padding)}, which crops "
                f"{left} + {right} of the {layer.full_length(input_length)} samples that input length {input_length}, "
                f"kernel size {kernel_size}, stride {p.stride} and dilation {p.dilation} give"
            )
        return _representable(geometry)
    if isinstance(p.padding, Crops):
        return _representable(geometry_to(layer, p.padding.left, input_length, size))
    smallest = geometry_of(layer, crops_of(p.padding), input_length).output_length
    if not max(smallest, 0) <= size < smallest + p.stride:
        raise ValueError(
            f"`output_size` must lie between {smallest} and {smallest + p.stride - 1} for input length {input_length}, "
            f"kernel size {kernel_size}, stride {p.stride}, padding {p.padding} and dilation {p.dilation}; "
            f"got output_size={size}"
        )
    return _representable(geometry_to(layer, p.padding, input_length, size))


def backward_geometry(p: Parameters, kernel_size: int, input_length: int, output_length: int) -> Geometry:
    """The geometry of a backward call: the length of grad_output decides the right crop."""
    layer = _plan(p, kernel_size, input_length)
    if p.output_padding is not None:
        smaller_output_padding(p.output_padding, p.stride, p.dilation)
        expected = geometry_of(layer, crops_of(p.padding, p.output_padding), input_length).output_length
        if output_length != expected:
            raise ValueError(
                f"`grad_output` must have length {expected}, the output length of input length {input_length}, kernel "
                f"size {kernel_size}, stride {p.stride}, padding {shown(p.padding)}, output_padding "
                f"{p.output_padding} and dilation {p.dilation}; got length {output_length}"
            )
    if isinstance(p.padding, Crops):
        return _representable(geometry_to(layer, p.padding.left, input_length, output_length))
    smallest = geometry_of(layer, crops_of(p.padding), input_length).output_length
    window = max(p.stride, p.dilation)
    if not smallest <= output_length < smallest + window:
        raise ValueError(
            f"`grad_output` must have a length between {smallest} and {smallest + window - 1}, the output lengths of "
            f"input length {input_length}, kernel size {kernel_size}, stride {p.stride}, padding {p.padding} and "
            f"dilation {p.dilation}; got length {output_length}"
        )
    return _representable(geometry_to(layer, p.padding, input_length, output_length))


def _plan(p: Parameters, kernel_size: int, input_length: int) -> Plan:
    """The plan of the layer, once its full length is known to fit an index."""
    full = (input_length - 1) * p.stride + p.dilation * (kernel_size - 1) + 1
    if full > LARGEST_INDEX:
        raise ValueError(
            f"`stride` and `dilation` must give an output of less than 2**62 samples; got stride={p.stride}, "
            f"dilation={p.dilation} with input length {input_length} and kernel size {kernel_size}"
        )
    return plan(kernel_size, p.stride, p.dilation)


def _representable(geometry: Geometry) -> Geometry:
    """Lengths and crops that the kernels' int64 can index."""
    if max(abs(geometry.crops.left), abs(geometry.crops.right), geometry.output_length) > LARGEST_INDEX:
        refuse(ValueError, "padding", "crops within ±2**62", tuple(geometry.crops))
    return geometry
