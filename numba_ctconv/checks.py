"""Every TypeError and ValueError of the package: what a caller may pass, and what is said of the rest.

Called by functional and modules before any work; knows shapes and numbers, not where an array lives. Each message names
the argument, what is expected and what was given.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, Protocol, get_args

import numpy as np

from .geometry import Crops, Geometry, Plan, crops_of, geometry_of, geometry_to, plan

Algorithm = Literal["auto", "gather", "scatter"]
GradientName = Literal["input", "weight", "bias"]
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
LARGEST_INDEX = 2**62 - 1  # sums and differences of two such integers still fit the kernels' int64
LARGEST_STEP = 2**31 - 1  # and so do products of two of these


class Array(Protocol):
    """What the checks read of an array, wherever it lives."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]


class Parameters(NamedTuple):
    """The integers of a call, validated; padding is an int as torch has it, or a pair of crops."""

    stride: int
    padding: int | Crops
    output_padding: int | None
    groups: int
    dilation: int


class Sizes(NamedTuple):
    """The sizes of a call, read off its arrays."""

    batch: int
    in_channels: int
    out_channels: int
    input_length: int
    kernel_size: int


# --- integers ---------------------------------------------------------------------------------------------------------


def integer(value: object, name: str, minimum: int | None = None, maximum: int = LARGEST_INDEX) -> int:
    """An int from anything with `__index__` but bool, or from a sequence of one such."""
    if type(value) is not int:
        if isinstance(value, list | tuple):
            if len(value) != 1:
                _refuse(ValueError, name, "an integer or a sequence of one integer", value)
            value = value[0]
        value = _index(value, name)
    if minimum is not None and value < minimum:
        _refuse(ValueError, name, f"at least {minimum}", value)
    if not -maximum <= value <= maximum:
        _refuse(ValueError, name, f"at most {maximum}" if value > 0 else f"at least {-maximum}", value)
    return value


def padding(value: object) -> int | Crops:
    """A non-negative int, or the pair of crops that a sequence of two integers of either sign is."""
    expected = "an integer or a pair (crop_left, crop_right)"
    if isinstance(value, list | tuple):
        if len(value) == 2:
            return Crops(integer(value[0], "padding[0]"), integer(value[1], "padding[1]"))
        if len(value) != 1:
            _refuse(ValueError, "padding", expected, value)
        value = value[0]
    p = integer(_index(value, "padding", expected), "padding")
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
            _refuse(ValueError, "output_size", f"an integer or a sequence of {expected} integers", value)
        value = value[-1]
    return integer(value, "output_size", 0)


# --- geometry ---------------------------------------------------------------------------------------------------------


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
                f"`padding` must leave an output of at least 0 samples; got padding={_shown(p.padding)}, which crops "
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
                f"size {kernel_size}, stride {p.stride}, padding {_shown(p.padding)}, output_padding "
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
        _refuse(ValueError, "padding", "crops within ±2**62", tuple(geometry.crops))
    return geometry


# --- arrays -----------------------------------------------------------------------------------------------------------


def floating(array: Array, name: str) -> None:
    """float32 or float64, in the machine's byte order."""
    if array.dtype not in DTYPES:
        expected = "a float32 or float64 array in native byte order"
        raise TypeError(f"`{name}` must be {expected}; got dtype {array.dtype}")


def same_dtype(arrays: Mapping[str, Array | None]) -> None:
    """One dtype for all: nothing is promoted."""
    (first, reference), *others = ((name, a) for name, a in arrays.items() if a is not None)
    for name, array in others:
        if array.dtype != reference.dtype:
            raise TypeError(
                f"`{name}` must have the dtype of `{first}`, {reference.dtype}; got {array.dtype}. "
                "Nothing is promoted: convert one of them with astype."
            )


def sizes(input_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, name: str = "input") -> Sizes:
    """Read the sizes of a call off the shapes of input and weight, and hold them against each other."""
    if len(input_shape) not in (2, 3):
        _refuse(ValueError, f"{name}", "an array of shape (N, C_in, L_in) or (C_in, L_in)", input_shape, "shape ")
    in_channels, channels_out, kernel_size = weight_sizes(weight_shape, groups)
    if input_shape[-2] != in_channels:
        raise ValueError(
            f"`{name}` must have the {in_channels} channels of `weight` (shape {weight_shape}); "
            f"got {input_shape[-2]} channels (shape {input_shape})"
        )
    if input_shape[-1] < 1:
        _refuse(ValueError, f"{name}", "at least 1 sample long", input_shape, "shape ")
    batch = input_shape[0] if len(input_shape) == 3 else 1
    return Sizes(batch, in_channels, channels_out * groups, input_shape[-1], kernel_size)


def weight_sizes(shape: tuple[int, ...], groups: int) -> tuple[int, int, int]:
    """(C_in, C_out/groups, K) of a weight."""
    if len(shape) != 3:
        _refuse(ValueError, "weight", "an array of shape (C_in, C_out/groups, K)", shape, "shape ")
    if 0 in shape:
        _refuse(ValueError, "weight", "of shape (C_in, C_out/groups, K) with no size 0", shape, "shape ")
    if shape[0] % groups:
        raise ValueError(
            f"`groups` must divide the {shape[0]} input channels of `weight` (shape {shape}); got groups={groups}"
        )
    return shape


def bias_shape(shape: tuple[int, ...], out_channels: int) -> None:
    """One bias an output channel."""
    if shape != (out_channels,):
        _refuse(ValueError, "bias", f"of shape ({out_channels},), one value an output channel", shape, "shape ")


def grad_output_shape(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
    """(N, C_out, any length), or unbatched where the input is."""
    if len(shape) != len(expected) or any(e is not None and s != e for s, e in zip(shape, expected, strict=True)):
        symbols = ("N", "C_out", "L_out")[-len(expected) :]
        text = ", ".join(symbol if e is None else str(e) for symbol, e in zip(symbols, expected, strict=True))
        _refuse(ValueError, "grad_output", f"of shape ({text})", shape, "shape ")


def output_array(array: Array, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """An `out` of the right shape and dtype no two elements of which share memory."""
    if array.shape != shape:
        _refuse(ValueError, name, f"of shape {shape}", array.shape, "shape ")
    if array.dtype != dtype:
        _refuse(TypeError, name, f"of dtype {dtype}", array.dtype, "dtype ")
    if 0 in shape:
        return
    reached = 0  # bytes spanned by the dimensions of smaller stride
    for stride, size in sorted((abs(st), n) for st, n in zip(array.strides, shape, strict=True) if n > 1):
        if stride < reached + dtype.itemsize:
            raise ValueError(
                f"`{name}` must be an array whose elements do not share memory; got shape {shape} "
                f"with strides {array.strides}"
            )
        reached += stride * (size - 1)


def read_only(name: str) -> NoReturn:
    """An `out` that can't be written."""
    raise ValueError(f"`{name}` must be writeable; got a read-only array")


def unaligned(name: str) -> NoReturn:
    """A device array that a GPU can't load element by element."""
    raise ValueError(f"`{name}` must lie at a multiple of its element size on a GPU; got an unaligned device array")


def overlapping(name: str, other: str) -> NoReturn:
    """An `out` that would be read while it is written."""
    raise ValueError(f"`{name}` must not overlap another argument; got an array that shares memory with `{other}`")


def not_an_array(name: str, value: object) -> NoReturn:
    """Neither a NumPy array nor a CUDA device array; torch's CPU tensors learn the way."""
    hint = ""
    if isinstance(value, list | tuple):
        hint = ". Nested sequences are not arrays: convert with numpy.asarray."
    elif callable(getattr(value, "numpy", None)):
        hint = ". Pass its NumPy view: value.detach().numpy()."
    raise TypeError(f"`{name}` must be a NumPy array or a CUDA device array; got {_type(value)}{hint}")


def masked(name: str) -> NoReturn:
    """A masked array, whose mask would be lost."""
    raise TypeError(
        f"`{name}` must be a plain array; got a numpy.ma.MaskedArray, whose mask has no meaning in a convolution. "
        "Fill it first: value.filled(0)."
    )


def requires_grad(name: str) -> NoReturn:
    """A torch tensor that autograd follows."""
    raise TypeError(
        f"`{name}` must be a tensor that autograd does not follow; got a torch tensor with requires_grad=True. "
        "Pass value.detach(); gradients come from conv_transpose1d_backward (numba_ctconv.torch is where autograd "
        "support will live)."
    )


def mixed_memory(host: str, device: str) -> NoReturn:
    """Host and device arrays in one call."""
    raise TypeError(
        f"`{device}` must live where `{host}` does; got a CUDA device array beside a NumPy array. "
        "Copy one of them first: nothing is copied between host and device behind your back."
    )


def mixed_devices(name: str, device: object, first: str, expected: object) -> NoReturn:
    """Arrays of two GPUs in one call."""
    raise ValueError(f"`{name}` must live on the device of `{first}`, {expected}; got an array on device {device}")


def no_cuda(name: str, reason: object) -> NoReturn:
    """A device array, or a layer's device="cuda", where Numba finds no CUDA."""
    if name == "device":
        raise TypeError(
            f'`device` must be "cpu" where numba.cuda can\'t be used; got "cuda" ({reason}). '
            'Install the CUDA extra: pip install "numba-ctconv[cuda]".'
        )
    raise TypeError(
        f"`{name}` must be a NumPy array where numba.cuda can't be used; got a CUDA device array ({reason}). "
        'Install the CUDA extra: pip install "numba-ctconv[cuda]".'
    )


def no_stream(stream: object) -> None:
    """A stream beside host arrays."""
    if stream is not None:
        raise TypeError(f"`stream` must be None with NumPy arrays: it orders work on a GPU; got {_type(stream)}")


def not_a_stream(stream: object) -> NoReturn:
    """Something no library hands out as a CUDA stream."""
    raise TypeError(
        "`stream` must be an integer, a Numba, CuPy or torch stream, or an object with __cuda_stream__; "
        f"got {_type(stream)}"
    )


# --- words ------------------------------------------------------------------------------------------------------------


def algorithm(value: object) -> Algorithm:
    """One of the algorithms, as a string."""
    _one_of(value, get_args(Algorithm), "algorithm")
    return value  # type: ignore[return-value]  # mypy does not narrow by membership


def needs(value: object) -> frozenset[GradientName]:
    """The names of the gradients wanted: one to three of "input", "weight", "bias"."""
    names = get_args(GradientName)
    if isinstance(value, str) or not isinstance(value, Iterable):
        _refuse(TypeError, "needs", f"a sequence of names out of {names}", value)
    try:
        wanted = frozenset(value)
    except TypeError:  # what no set can hold is no name either
        wanted = frozenset()
    if not wanted or not wanted <= frozenset(names):
        _refuse(ValueError, "needs", f"a sequence of one or more names out of {names}", value)
    return wanted


def gradients_out(out: object, wanted: frozenset[GradientName]) -> tuple[Any, Any, Any]:
    """The three arrays of a backward `out`; none for a gradient that is not wanted."""
    if out is None:
        return None, None, None
    if not isinstance(out, tuple) or len(out) != 3:
        _refuse(TypeError, "out", "a Gradients of arrays or None", out)
    for name, array in zip(get_args(GradientName), out, strict=True):
        if array is not None and name not in wanted:
            raise ValueError(f"`out.{name}` must be None where `needs` leaves out {name!r}; got {_type(array)}")
    return out


def input_length(value: object, input_shape: tuple[int, ...] | None, weight_wanted: bool) -> int:
    """The length that the input has, or is said to have where it is not given."""
    if input_shape is None:
        if weight_wanted:
            raise TypeError('`input` must be an array where `needs` names "weight"; got None')
        if value is None:
            raise TypeError("`input_length` must be an integer where `input` is None; got None")
        return integer(value, "input_length", 1)
    if value is not None and integer(value, "input_length", 1) != input_shape[-1]:
        _refuse(ValueError, "input_length", f"{input_shape[-1]}, the length of `input`", value)
    return input_shape[-1]


# --- layers -----------------------------------------------------------------------------------------------------------


def channels(in_channels: object, out_channels: object, groups: int) -> tuple[int, int]:
    """Channels that the groups divide."""
    c_in, c_out = integer(in_channels, "in_channels", 1), integer(out_channels, "out_channels", 1)
    for name, value in (("in_channels", c_in), ("out_channels", c_out)):
        if value % groups:
            raise ValueError(f"`{name}` must be divisible by `groups`; got {name}={value}, groups={groups}")
    return c_in, c_out


def padding_mode(value: object) -> None:
    """Transposed convolution has one."""
    if not isinstance(value, str) or value != "zeros":
        expected = '"zeros", the only mode of a transposed convolution'
        _refuse(ValueError if isinstance(value, str) else TypeError, "padding_mode", expected, value)


def device(value: object) -> Literal["cpu", "cuda"]:
    """Where a layer keeps its weights."""
    _one_of(value, ("cpu", "cuda"), "device")
    return value  # type: ignore[return-value]  # mypy does not narrow by membership


def layer_dtype(value: object) -> np.dtype[Any]:
    """float32 or float64."""
    try:
        dtype: np.dtype[Any] = np.dtype(value)  # type: ignore[call-overload]  # NumPy refuses what it doesn't know
    except TypeError:
        _refuse(TypeError, "dtype", "float32 or float64", value)
    if value is None or dtype not in DTYPES:
        _refuse(TypeError, "dtype", "float32 or float64", value)
    return dtype


def generator(value: object) -> np.random.Generator:
    """The source of initial weights; None takes a fresh one."""
    if value is None:
        return np.random.default_rng()
    if not isinstance(value, np.random.Generator):
        _refuse(TypeError, "rng", "a numpy.random.Generator or None", value)
    return value


def layer_parameter(array: Array, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """A parameter given to a layer has the layer's shape and dtype."""
    if array.shape != shape:
        _refuse(ValueError, name, f"of shape {shape}", array.shape, "shape ")
    if array.dtype != dtype:
        _refuse(TypeError, name, f"of the layer's dtype {dtype}; convert it with astype", array.dtype, "dtype ")


def fixed_bias(value: object) -> NoReturn:
    """A layer is made with or without a bias, and stays so."""
    if value is None:
        raise ValueError("`bias` must be an array in a layer made with bias=True; got None")
    raise ValueError(f"`bias` must be None in a layer made with bias=False; got {_type(value)}")


def boolean(value: object, name: str) -> bool:
    """True or False, NumPy's too."""
    if not isinstance(value, bool | np.bool_):
        _refuse(TypeError, name, "True or False", value)
    return bool(value)


def state_keys(state: object, expected: Sequence[str], possible: Sequence[str] = ()) -> Mapping[str, Any]:
    """A state dict with the layer's keys: all that are expected and none that is not possible."""
    if not isinstance(state, Mapping):
        _refuse(TypeError, "state_dict", "a mapping of names to arrays", state)
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in (*expected, *possible)]
    if missing or unexpected:
        raise ValueError(
            f"`state_dict` must have the keys {list(expected)}; missing keys: {missing}, unexpected keys: {unexpected}"
        )
    return state


# --- wording ----------------------------------------------------------------------------------------------------------


def _index(value: object, name: str, expected: str = "an integer") -> int:
    if isinstance(value, bool | np.bool_):
        _refuse(TypeError, name, expected, value)
    try:
        return operator.index(value)  # type: ignore[arg-type]  # the TypeError is the test
    except TypeError:
        _refuse(TypeError, name, expected, value)


def _refuse(error: type[Exception], name: str, expected: str, given: object, kind: str = "") -> NoReturn:
    shown = f"{name.rpartition('.')[2]}={given!r}" if not kind else f"{kind}{given}"
    raise error(f"`{name}` must be {expected}; got {shown}")


def _one_of(value: object, names: Sequence[str], name: str) -> None:
    expected = "one of " + ", ".join(f'"{n}"' for n in names)
    if not isinstance(value, str):
        _refuse(TypeError, name, expected, value)
    if value not in names:
        _refuse(ValueError, name, expected, value)


def _shown(padding: int | Crops) -> str:
    return str(tuple(padding)) if isinstance(padding, Crops) else str(padding)


def _type(value: object) -> str:
    if value is None:
        return "None"
    module, name = type(value).__module__, type(value).__qualname__
    return name if module == "builtins" else f"{module}.{name}"
