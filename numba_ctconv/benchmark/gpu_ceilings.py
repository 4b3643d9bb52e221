"""How fast a GPU can be at this moment: multiply-adds in registers, a large matrix product, a copy of device memory.

Measured by on_gpu around every row. Full float32 and float64 have the rate of multiply-adds, or that of the product
where tensor cores make it the higher one; tf32 and halves have that of the product, which torch computes. A row's
arrays can't be moved faster than a copy moves as many bytes.
"""

from collections.abc import Callable

from .ceilings import Ceilings
from .formats import Format
from .graphs import Backend, timed

TRIES = 5


def measure(backend: Backend, kind: Format, product: Callable[[], int] | None, moved: int) -> Ceilings:
    """The ceilings of work in a format that moves so many bytes.

    Parameters
    ----------
    backend : Backend
    kind : Format
    product : callable or None
        Queues a large matrix product in the format and says how many operations it takes; None where nobody has one.
    moved : int
        Bytes.
    """
    sources = [lambda: backend.multiply_adds(kind.name)] if on_multiply_adds(kind) else []
    sources += [] if product is None else [product]
    peak = max((rate(backend, source) for source in sources), default=None)
    return Ceilings(peak, moved / rate(backend, backend.copy))


def on_multiply_adds(kind: Format) -> bool:
    """Whether the format is computed in full by multiply-adds."""
    return kind.precision == "ieee" and kind.rounding == 0


def rate(backend: Backend, run: Callable[[], int]) -> float:
    """What `run` says that it does, a second, in the fastest of several tries."""
    amount = run()
    return amount / min(timed(backend, run, TRIES, flush=False))
