"""What a layer is made of: channels, device, dtype, parameters and state."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn

import numpy as np

from .arrays import BFLOAT16, DEVICE_DTYPES, DTYPES, Array, Bfloat16, floating
from .memory import masked
from .parameters import integer
from .wording import one_of, refuse, type_name


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
        refuse(ValueError if isinstance(value, str) else TypeError, "padding_mode", expected, value)


def device(value: object) -> Literal["cpu", "cuda"]:
    """Where a layer keeps its weights."""
    one_of(value, ("cpu", "cuda"), "device")
    return value  # type: ignore[return-value]  # mypy does not narrow by membership


def layer_dtype(value: object, dtypes: Sequence[Any] = DTYPES) -> np.dtype[Any]:
    """float32 or float64, or one of `dtypes`; bfloat16 where ml_dtypes gives it to NumPy."""
    *others, last = (each.name for each in dtypes)
    expected = f"{', '.join(others)} or {last}"
    dtype: np.dtype[Any]
    asked: Any = value.name if isinstance(value, Bfloat16) else value
    try:
        dtype = np.dtype(asked)
    except TypeError:
        needs = " (which needs ml_dtypes to be imported)" if value in (BFLOAT16, BFLOAT16.name) else ""
        refuse(TypeError, "dtype", expected + needs, value)
    if value is None or dtype not in dtypes:
        refuse(TypeError, "dtype", expected, value)
    return dtype


def generator(value: object) -> "np.random.Generator":  # quoted: NumPy loads numpy.random when it is asked for
    """The source of initial weights; None takes a fresh one."""
    if value is None:
        return np.random.default_rng()
    if not isinstance(value, np.random.Generator):
        refuse(TypeError, "rng", "a numpy.random.Generator or None", value)
    return value


def layer_parameter(array: Array, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """A parameter given to a layer has the layer's shape and dtype."""
    if array.shape != shape:
        refuse(ValueError, name, f"of shape {shape}", array.shape, "shape ")
    if array.dtype != dtype:
        refuse(TypeError, name, f"of the layer's dtype {dtype}; convert it with astype", array.dtype, "dtype ")


def host_parameter(value: Any, name: str) -> None:
    """A NumPy array that a layer on CUDA is to hold."""
    if isinstance(value, np.ma.MaskedArray):
        masked(name)
    floating(value, name, DEVICE_DTYPES)


def fixed_bias(value: object) -> NoReturn:
    """A layer is made with or without a bias, and stays so."""
    if value is None:
        raise ValueError("`bias` must be an array in a layer made with bias=True; got None")
    raise ValueError(f"`bias` must be None in a layer made with bias=False; got {type_name(value)}")


def boolean(value: object, name: str) -> bool:
    """True or False, NumPy's too."""
    if not isinstance(value, bool | np.bool_):
        refuse(TypeError, name, "True or False", value)
    return bool(value)


def state_keys(state: object, expected: Sequence[str], possible: Sequence[str] = ()) -> Mapping[str, Any]:
    """A state dict with the layer's keys: all that are expected and none that is not possible."""
    if not isinstance(state, Mapping):
        refuse(TypeError, "state_dict", "a mapping of names to arrays", state)
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in (*expected, *possible)]
    if missing or unexpected:
        raise ValueError(
            f"`state_dict` must have the keys {list(expected)}; missing keys: {missing}, unexpected keys: {unexpected}"
        )
    return state
