"""How a refusal is worded: the argument, what is expected, what was given."""

import operator
from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from ..geometry import Crops


def index(value: object, name: str, expected: str = "an integer") -> int:
    """An int from anything with `__index__` but bool."""
    if isinstance(value, bool | np.bool_):
        refuse(TypeError, name, expected, value)
    try:
        return operator.index(value)  # type: ignore[arg-type]  # the TypeError is the test
    except TypeError:
        refuse(TypeError, name, expected, value)


def refuse(error: type[Exception], name: str, expected: str, given: object, kind: str = "") -> NoReturn:
    """Say that `name` must be `expected`; a `kind` ("shape ", "dtype ") shows what is given without the name."""
    shown = f"{name.rpartition('.')[2]}={given!r}" if not kind else f"{kind}{given}"
    raise error(f"`{name}` must be {expected}; got {shown}")


def one_of(value: object, names: Sequence[str], name: str) -> None:
    """Hold a string against the names that an argument takes."""
    if not isinstance(value, str) or value not in names:
        expected = "one of " + ", ".join(f'"{n}"' for n in names)
        refuse(ValueError if isinstance(value, str) else TypeError, name, expected, value)


def shown(padding: int | Crops) -> str:
    """A padding as its caller wrote it."""
    return str(tuple(padding)) if isinstance(padding, Crops) else str(padding)


def type_name(value: object) -> str:
    """A type as its user knows it."""
    if value is None:
        return "None"
    module, name = type(value).__module__, type(value).__qualname__
    return name if module == "builtins" else f"{module}.{name}"
