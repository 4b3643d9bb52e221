"""float32_precision: how float32 products may be rounded on CUDA where a call does not say. Read by functional."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar

from . import checks
from .checks import PRECISIONS, Precision

_surrounding: ContextVar[Precision] = ContextVar("float32_precision", default="ieee")


def float32_precision(precision: str) -> AbstractContextManager[None]:
    """Choose how float32 products are computed on CUDA by the calls inside that do not say so themselves.

    "ieee" computes in float32 throughout; it is the default. "tf32" allows tensor cores, which round both factors to
    10 bits after the point before they multiply, as PyTorch does for convolutions by default. It is a permission: where
    float32 itself is as fast, or the GPU has no such units, full precision may be computed. Sums are float32 in both.

    The choice is that of the thread, or of the asynchronous task, that makes it, and ends with the block. It says
    nothing of other dtypes, nor of NumPy arrays, which are always computed in full. Usable as a decorator too.

    Parameters
    ----------
    precision : {"ieee", "tf32"}

    Raises
    ------
    TypeError, ValueError
        For anything else, at once.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_ctconv import conv_transpose1d
    >>> with float32_precision("tf32"):
    ...     conv_transpose1d(np.ones((1, 3)), np.ones((1, 1, 2)))  # NumPy arrays: in full
    array([[1., 2., 2., 1.]])
    """
    return _setting(checks.precision(precision, PRECISIONS))


def chosen(precision: object, offered: Sequence[Precision]) -> Precision:
    """The precision of a call on an engine: the one asked for, else the surrounding one as far as it is offered."""
    if precision is not None:
        return checks.precision(precision, offered)
    surrounding = _surrounding.get()
    return surrounding if surrounding in offered else offered[0]


@contextlib.contextmanager
def _setting(precision: Precision) -> Iterator[None]:
    token = _surrounding.set(precision)
    try:
        yield
    finally:
        _surrounding.reset(token)
