"""The arrays of a call: dtypes, shapes held against each other, and where results go; and the words beside them."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from .parameters import integer
from .wording import one_of, refuse, type_name

Algorithm = Literal["auto", "tiled", "gather", "scatter"]
Precision = Literal["ieee", "tf32"]
GradientName = Literal["input", "weight", "bias"]
GRADIENTS: tuple[GradientName, ...] = get_args(GradientName)
OUT_NAMES = tuple(f"out.{name}" for name in GRADIENTS)  # what errors call the arrays of a backward `out`
DTYPES = (np.dtype(np.float32), np.dtype(np.float64))
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class Bfloat16:
    """The dtype of arrays of bfloat16, which NumPy has only where ml_dtypes is; the same as ml_dtypes' own."""

    name = "bfloat16"
    itemsize = 2

    def __eq__(self, other: object) -> bool:
        # NumPy takes microseconds to name a dtype; ml_dtypes' own is void to it
        return isinstance(other, Bfloat16) or (
            getattr(other, "kind", None) == "V" and getattr(other, "name", None) == self.name
        )

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name


BFLOAT16: Any = Bfloat16()
DEVICE_DTYPES: tuple[Any, ...] = (np.dtype(np.float16), BFLOAT16, *DTYPES)


class Array(Protocol):
    """What the checks read of an array, wherever it lives."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its elements."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""


class StridedArray(Array, Protocol):
    """What they read of one that is written."""

    @property
    def strides(self) -> tuple[int, ...]:
        """In bytes."""


class Described(NamedTuple):
    """An array's dtype and shape, where nothing else is asked for; strides, in bytes, of one that is written."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()


class Sizes(NamedTuple):
    """The sizes of a call, read off its arrays."""

    batch: int
    in_channels: int
    out_channels: int
    input_length: int
    kernel_size: int


def floating(array: Array, name: str, dtypes: Sequence[Any] = DTYPES) -> None:
    """float32 or float64, or those of `dtypes`, in the machine's byte order."""
    if array.dtype not in dtypes:
        *others, last = (dtype.name for dtype in dtypes)
        expected = f"a {', '.join(others)} or {last} array in native byte order"
        raise TypeError(f"`{name}` must be {expected}; got dtype {array.dtype}")


def same_dtype(arrays: Mapping[str, Array | None]) -> None:
    """One dtype for all: nothing is promoted."""
    first = reference = None
    for name, array in arrays.items():
        if array is None:
            continue
        dtype = array.dtype
        if reference is None:
            first, reference = name, dtype
        elif dtype is not reference and dtype != reference:
            raise TypeError(
                f"`{name}` must have the dtype of `{first}`, {reference}; got {dtype}. "
                "Nothing is promoted: convert one of them with astype."
            )


def sizes(input_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, name: str = "input") -> Sizes:
    """Read the sizes of a call off the shapes of input and weight, and hold them against each other."""
    if len(input_shape) not in (2, 3):
        refuse(ValueError, f"{name}", "an array of shape (N, C_in, L_in) or (C_in, L_in)", input_shape, "shape ")
    in_channels, channels_out, kernel_size = weight_sizes(weight_shape, groups)
    if input_shape[-2] != in_channels:
        raise ValueError(
            f"`{name}` must have the {in_channels} channels of `weight` (shape {weight_shape}); "
            f"got {input_shape[-2]} channels (shape {input_shape})"
        )
    if input_shape[-1] < 1:
        refuse(ValueError, f"{name}", "at least 1 sample long", input_shape, "shape ")
    batch = input_shape[0] if len(input_shape) == 3 else 1
    return Sizes(batch, in_channels, channels_out * groups, input_shape[-1], kernel_size)


def weight_sizes(shape: tuple[int, ...], groups: int) -> tuple[int, int, int]:
    """(C_in, C_out/groups, K) of a weight."""
    if len(shape) != 3:
        refuse(ValueError, "weight", "an array of shape (C_in, C_out/groups, K)", shape, "shape ")
    if 0 in shape:
        refuse(ValueError, "weight", "of shape (C_in, C_out/groups, K) with no size 0", shape, "shape ")
    if shape[0] % groups:
        raise ValueError(
            f"`groups` must divide the {shape[0]} input channels of `weight` (shape {shape}); got groups={groups}"
        )
    return shape


def bias_shape(shape: tuple[int, ...], out_channels: int) -> None:
    """One bias an output channel."""
    if shape != (out_channels,):
        refuse(ValueError, "bias", f"of shape ({out_channels},), one value an output channel", shape, "shape ")


def grad_output_shape(shape: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
    """(N, C_out, any length), or unbatched where the input is."""
    if len(shape) != len(expected) or any(e is not None and s != e for s, e in zip(shape, expected, strict=True)):
        symbols = ("N", "C_out", "L_out")[-len(expected) :]
        text = ", ".join(symbol if e is None else str(e) for symbol, e in zip(symbols, expected, strict=True))
        refuse(ValueError, "grad_output", f"of shape ({text})", shape, "shape ")


def output_array(array: StridedArray, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """An `out` of the right shape and dtype no two elements of which share memory."""
    if array.shape != shape:
        refuse(ValueError, name, f"of shape {shape}", array.shape, "shape ")
    if array.dtype != dtype:
        refuse(TypeError, name, f"of dtype {dtype}", array.dtype, "dtype ")
    if not _elements_lie_apart(shape, array.strides, dtype.itemsize):
        raise ValueError(
            f"`{name}` must be an array whose elements do not share memory; got shape {shape} "
            f"with strides {array.strides}"
        )


@functools.lru_cache(maxsize=256)
def _elements_lie_apart(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    reached = 0  # bytes spanned by the dimensions of smaller stride
    for stride, size in sorted((abs(st), n) for st, n in zip(strides, shape, strict=True) if n > 1):
        if stride < reached + itemsize:
            return 0 in shape
        reached += stride * (size - 1)
    return True


def algorithm(value: object, offered: Sequence[Algorithm]) -> Algorithm:
    """One of the algorithms that an engine offers, as a string."""
    one_of(value, offered, "algorithm")
    return value  # type: ignore[return-value]  # mypy does not narrow by membership


def summed_once(dtype: Any, algorithm: Algorithm) -> None:
    """Halves are summed in float32 and rounded once, which "scatter" does not."""
    if dtype.itemsize < DTYPES[0].itemsize and algorithm == "scatter":
        raise ValueError(
            f'`algorithm` must be "auto", "tiled" or "gather" with {dtype.name} arrays, which are rounded once; '
            f"got algorithm={algorithm!r}"
        )


def precision(value: object, offered: Sequence[Precision]) -> Precision:
    """One of the precisions of float32 that an engine offers, as a string."""
    one_of(value, PRECISIONS, "precision")
    if value not in offered:
        expected = '"ieee" or None with NumPy arrays and layers on the CPU: "tf32" is of tensor cores'
        refuse(ValueError, "precision", expected, value)
    return value  # type: ignore[return-value]  # mypy does not narrow by membership


def needs(value: object) -> frozenset[GradientName]:
    """The names of the gradients wanted: one to three of "input", "weight", "bias"."""
    if type(value) is not tuple and (isinstance(value, str) or not isinstance(value, Iterable)):
        refuse(TypeError, "needs", f"a sequence of names out of {GRADIENTS}", value)
    try:
        wanted = frozenset(value)
    except TypeError:  # what no set can hold is no name either
        wanted = frozenset()
    if not wanted or not wanted.issubset(GRADIENTS):
        refuse(ValueError, "needs", f"a sequence of one or more names out of {GRADIENTS}", value)
    return wanted


def gradients_out(out: object, wanted: frozenset[GradientName]) -> tuple[Any, Any, Any]:
    """The three arrays of a backward `out`; none for a gradient that is not wanted."""
    if out is None:
        return None, None, None
    if not isinstance(out, tuple) or len(out) != 3:
        refuse(TypeError, "out", "a Gradients of arrays or None", out)
    for name, array in zip(GRADIENTS, out, strict=True):
        if array is not None and name not in wanted:
            raise ValueError(f"`out.{name}` must be None where `needs` leaves out {name!r}; got {type_name(array)}")
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
        refuse(ValueError, "input_length", f"{input_shape[-1]}, the length of `input`", value)
    return input_shape[-1]
