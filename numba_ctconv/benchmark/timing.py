"""Times contestants against each other: interleaved blocks of calls, and the statistics of what they took.

Called by measure. The contestants take turns, a block each, so that a machine that slows down slows all of them. A
short pause comes before a block: threads of an OpenMP pool go on spinning after their last task, and would halve the
speed of the next contestant's.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Idle threads spin for some milliseconds in GNU's OpenMP runtime, for 200 in LLVM's and Intel's.
PAUSE = 0.25
BLOCK_SECONDS = 0.05


class Call(NamedTuple):
    """What is timed: `run` queues or does the work, `finish` waits for it (does nothing on the CPU)."""

    run: Callable[[], Any]
    finish: Callable[[], None]


class Samples(NamedTuple):
    """Seconds a call, one value a block, and how many calls each block made."""

    seconds: tuple[float, ...]
    calls: int


class Ratio(NamedTuple):
    """A median with its interval of 95 %; None where there are too few values for one."""

    median: float
    low: float | None
    high: float | None


def interleaved(
    contestants: Mapping[str, Call],
    blocks: int,
    *,
    block_seconds: float = BLOCK_SECONDS,
    pause: float = PAUSE,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Samples]:
    """Time every contestant in so many blocks, in turn; each round starts with the next contestant.

    Parameters
    ----------
    contestants : mapping of str to Call
        What to time; each has run before, so that nothing is compiled here.
    blocks : int
        Blocks for each contestant.
    block_seconds : float
        A block repeats its call until about so many seconds are filled, at least once.
    pause : float
        Seconds of rest before each block.
    progress : callable, optional
        Called with the number of each round that starts.

    Returns
    -------
    dict of str to Samples
    """
    names = list(contestants)
    calls = {}
    for name in names:
        time.sleep(pause)
        once = _block(contestants[name], 1)
        calls[name] = max(1, math.ceil(block_seconds / max(once, 1e-9)))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for block in range(blocks):
        if progress is not None:
            progress(block)
        first = block % len(names)
        for name in names[first:] + names[:first]:
            time.sleep(pause)
            seconds[name].append(_block(contestants[name], calls[name]))
    return {name: Samples(tuple(seconds[name]), calls[name]) for name in names}


def _block(call: Call, calls: int) -> float:
    """Seconds a call; one call before the clock starts wakes the threads and fills the caches."""
    run, finish = call
    run()
    finish()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    finish()
    return (time.perf_counter() - start) / calls


def spread(values: Sequence[float]) -> float:
    """Interquartile range over median; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / median


def paired_ratio(times: Sequence[float], others: Sequence[float]) -> Ratio:
    """How many times as fast as the other: median of other's time over own, block by block.

    The interval comes from the order statistics of the ratios: the median lies between the j-th smallest and the j-th
    largest of n with probability 1 - 2·P(Binomial(n, 1/2) < j), whatever their distribution.
    """
    ratios = sorted(other / own for own, other in zip(times, others, strict=True))
    j = _rank(len(ratios))
    if j is None:
        return Ratio(statistics.median(ratios), None, None)
    return Ratio(statistics.median(ratios), ratios[j - 1], ratios[-j])


def _rank(n: int, confidence: float = 0.95) -> int | None:
    """The largest j for which the interval covers the median with that probability; None below six values."""
    below, found = 0.0, None
    for j in range(1, n // 2 + 1):
        below += math.comb(n, j - 1) / 2**n
        if 1 - 2 * below < confidence:
            break
        found = j
    return found
