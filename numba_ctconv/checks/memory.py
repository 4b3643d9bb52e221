"""What only an engine can see: whose memory an array is, whether it can be written, on which device and stream."""

from typing import Any, NoReturn

from .wording import type_name


def output_memory(engine: Any, name: str, array: Any, others: dict[str, Any]) -> None:
    """An `out` that can be written, and shares no memory with what is read or written beside it."""
    if not engine.writeable(array):
        raise ValueError(f"`{name}` must be writeable; got a read-only array")
    other = engine.overlapped(array, others)
    if other is not None:
        raise ValueError(f"`{name}` must not overlap another argument; got an array that shares memory with `{other}`")


def unaligned(name: str) -> NoReturn:
    """A device array that a GPU can't load element by element."""
    raise ValueError(f"`{name}` must lie at a multiple of its element size on a GPU; got an unaligned device array")


def not_an_array(name: str, value: object) -> NoReturn:
    """Neither a NumPy array nor a CUDA device array; torch's CPU tensors learn the way."""
    hint = ""
    if isinstance(value, list | tuple):
        hint = ". Nested sequences are not arrays: convert with numpy.asarray."
    elif callable(getattr(value, "numpy", None)):
        hint = ". Pass its NumPy view: value.detach().numpy()."
    raise TypeError(f"`{name}` must be a NumPy array or a CUDA device array; got {type_name(value)}{hint}")


def masked(name: str, what: str = "numpy.ma.MaskedArray") -> NoReturn:
    """A masked array, whose mask would be lost."""
    raise TypeError(
        f"`{name}` must be a plain array; got a {what}, whose mask has no meaning in a convolution. "
        "Fill it first: value.filled(0)."
    )


def requires_grad(name: str) -> NoReturn:
    """A torch tensor that autograd follows."""
    raise TypeError(
        f"`{name}` must be a tensor that autograd does not follow; got a torch tensor with requires_grad=True. "
        "Pass value.detach(); gradients come from conv_transpose1d_backward."
    )


def not_dense(name: str, what: object) -> NoReturn:
    """A torch tensor whose numbers do not lie in memory as its strides say."""
    raise TypeError(f"`{name}` must be a tensor in dense memory; got {what}. Pass value.to_dense().resolve_neg().")


def not_exported(name: str, reason: Exception) -> NoReturn:
    """An array that its library does not export."""
    raise TypeError(f"`{name}` must be an array that its library exports by DLPack; it said: {reason}")


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
        raise TypeError(f"`stream` must be None with NumPy arrays: it orders work on a GPU; got {type_name(stream)}")


def foreign_stream(device: int) -> NoReturn:
    """A stream on which the arrays' device can't work."""
    raise ValueError(
        f"`stream` must be a stream of device {device}, where the arrays are, in its primary context; "
        "got a stream of another device or context"
    )


def out_of_memory(bytes_: int, device: int, reason: Exception) -> NoReturn:
    """What the driver says when an array does not fit."""
    raise MemoryError(
        f"an array of {bytes_} bytes ({bytes_ / 2**30:.2f} GiB) does not fit on device {device}: {reason}. "
        "Nothing was computed; give `out`, or smaller pieces of the batch."
    ) from reason


def unallocatable(dtype: object) -> NoReturn:
    """A result whose library is not known, in a dtype that Numba's arrays lack."""
    raise TypeError(
        f"`out` must be given for {dtype} arrays of an unknown library where ml_dtypes is not installed: "
        "no array could be made for the result"
    )


def not_a_stream(stream: object) -> NoReturn:
    """Something no library hands out as a CUDA stream."""
    raise TypeError(
        "`stream` must be an integer, a Numba, CuPy or torch stream, or an object with __cuda_stream__; "
        f"got {type_name(stream)}"
    )
