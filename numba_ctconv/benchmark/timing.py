"""Times contestants against each other: interleaved blocks of calls, and the statistics of what they took.

Called by measure. The contestants take turns, a block each, so that a machine that slows down slows all of them. A
rest comes before a block: threads of an OpenMP pool go on spinning after their last task, and would halve the speed of
the next contestant's. It lasts until the process uses no more processor time, so that nobody has to know whose threads
spin for how long.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

# Idle threads spin for some milliseconds in GNU's OpenMP runtime, for 200 in LLVM's and Intel's.
PAUSE = 0.25
NAP = 0.01  # seconds between looks at the processor time
IDLE = 0.1  # of one core: below it nobody spins
BLOCK_SECONDS = 0.02
FEWEST_BLOCKS = 3  # however little time there is

Name = TypeVar("Name", bound=Hashable)


def nothing() -> None:
    """What a call has to do before a block, or after one, where nothing is to be done."""


class Call(NamedTuple):
    """What is timed: `run` queues or does the work, `finish` waits for it; `set_up` sets the threads before a block.

    A GPU brings clocks of its own, which take the number of calls and give seconds a call: `clock` those of the device,
    `queued` those of the host, which only queues the work. Without them the host's clock times both together.
    """

    run: Callable[[], Any]
    finish: Callable[[], None] = nothing
    set_up: Callable[[], None] = nothing
    clock: Callable[[int], float] | None = None
    queued: Callable[[int], float] | None = None


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
    contestants: Mapping[Name, Call],
    blocks: int,
    *,
    block_seconds: float | None = None,
    most_calls: int | None = None,
    budget: float | None = None,
    pause: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[Name, Samples]:
    """Time every contestant in so many blocks, in turn; each round starts with the next contestant.

    Parameters
    ----------
    contestants : mapping to Call
        What to time; each has run before, so that nothing is compiled here.
    blocks : int
        Blocks for each contestant.
    block_seconds : float, optional
        A block repeats its call until about so many seconds are filled, at least once; default: BLOCK_SECONDS.
    most_calls : int, optional
        Of a block, where a call costs more than its own time.
    budget : float, optional
        Seconds that all blocks together may take: there are fewer where they are too slow, but FEWEST_BLOCKS at least.
    pause : float, optional
        The longest rest before each block, in seconds; default: PAUSE.
    progress : callable, optional
        Called with the number of each round that starts.

    Returns
    -------
    dict of Samples, by the names of the contestants
    """
    longest = PAUSE if pause is None else pause
    filled = BLOCK_SECONDS if block_seconds is None else block_seconds
    names = list(contestants)
    calls, cost = {}, 0.0
    for name in names:
        rest(longest)
        once = _block(contestants[name], 1)
        calls[name] = max(1, min(math.ceil(filled / max(once, 1e-9)), most_calls or sys.maxsize))
        cost += (calls[name] + 1) * once
    if budget is not None:
        blocks = affordable(blocks, cost, budget)
    seconds: dict[Name, list[float]] = {name: [] for name in names}
    for block in range(blocks):
        if progress is not None:
            progress(block)
        first = block % len(names)
        for name in names[first:] + names[:first]:
            rest(longest)
            seconds[name].append(_block(contestants[name], calls[name]))
    return {name: Samples(tuple(seconds[name]), calls[name]) for name in names}


def affordable(blocks: int, cost: float, budget: float) -> int:
    """How many of so many blocks fit into a budget of seconds; `cost` is that of a block of every contestant."""
    return max(min(blocks, int(budget / max(cost, 1e-9))), min(blocks, FEWEST_BLOCKS))


def queueing(contestants: Mapping[Name, Call], calls: Mapping[Name, int], blocks: int) -> dict[Name, Samples]:
    """Time the host alone, in turn, for those whose work is only queued."""
    clocks = {name: call.queued for name, call in contestants.items() if call.queued is not None}
    seconds: dict[Name, list[float]] = {name: [] for name in clocks}
    for _ in range(blocks):
        for name, queued in clocks.items():
            contestants[name].set_up()
            seconds[name].append(queued(calls[name]))
    return {name: Samples(tuple(values), calls[name]) for name, values in seconds.items()}


def rest(longest: float) -> None:
    """Sleep until no thread of this process spins, for so many seconds at most."""
    end = time.perf_counter() + longest
    while (left := end - time.perf_counter()) > 0:
        used = time.process_time()
        nap = min(NAP, left)
        time.sleep(nap)
        if time.process_time() - used < IDLE * nap:
            return


def _block(call: Call, calls: int) -> float:
    """Seconds a call; one call before the clock starts wakes the threads and fills the caches."""
    run, finish, set_up, clock, _ = call
    set_up()
    if clock is not None:
        return clock(calls)
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
