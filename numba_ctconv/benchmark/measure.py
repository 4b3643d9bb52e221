"""Measures a job: hold every contestant against the reference, then time them between two looks at the ceilings.

Called by `numba-ctconv bench`. Nothing is timed for a row in which a result is wrong.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import ceilings, timing
from .ceilings import Ceilings
from .checking import Expected
from .contestants import Contestant, flops, results, traffic
from .peers import PEERS
from .progress import Progress
from .selection import Job
from .timing import Call, Ratio, Samples

Key = tuple[str, int]  # a contestant's name and its threads

BEST = "best"  # the faster of the peers, block by block
ONE_THREAD = "one_thread"  # the contestant itself, with one thread
RATIOS = (*PEERS, BEST, ONE_THREAD)


@dataclasses.dataclass(frozen=True)
class Row:
    """One contestant's time for one job."""

    job: Job
    contestant: str
    threads: int
    dtype: str
    samples: Samples
    ratios: Mapping[str, Ratio]  # how many times as fast as each of RATIOS, where that was measured
    ceilings: Ceilings | None

    def record(self) -> dict[str, Any]:
        """The row as JSON types, with the time of every block."""
        problem, what, full = self.job
        seconds = statistics.median(self.samples.seconds)
        operations, moved = flops(problem, what), traffic(problem, what).bytes(self.dtype)
        floor = None if self.ceilings is None else self.ceilings.floor(operations)
        return {
            "row": problem.name,
            "pass": what,
            "batch": problem.batch,
            "input_length": problem.input_length,
            "full_batch": full.batch,
            "full_input_length": full.input_length,
            "dtype": self.dtype,
            "threads": self.threads,
            "contestant": self.contestant,
            "seconds": list(self.samples.seconds),
            "calls_per_block": self.samples.calls,
            "median": seconds,
            "spread": timing.spread(self.samples.seconds),
            "flops": operations,
            "bytes": moved,
            "gflops": operations / seconds / 1e9,
            "peak_gflops": self.ceilings and self.ceilings.peak / 1e9,
            "loop_seconds": self.ceilings and self.ceilings.loop,
            "floor_seconds": floor,
            "of_peak": self.ceilings and operations / seconds / self.ceilings.peak,
            "of_floor": floor and floor / seconds,
            **{f"times_{name}": self.ratios[name]._asdict() if name in self.ratios else None for name in RATIOS},
        }


class Refusal(NamedTuple):
    """A job that is not timed, because a contestant's result is wrong."""

    job: Job
    contestant: str
    reason: str

    def __str__(self) -> str:
        """In words."""
        return f"{self.job.problem.name}, {self.job.what}, {self.contestant}: not timed: {self.reason}"


def measure(
    job: Job,
    contestants: Sequence[Contestant],
    dtype: str,
    *,
    blocks: int,
    pause: float | None,
    progress: Progress,
    ceiling: bool = True,
) -> list[Row] | Refusal:
    """Check every contestant that takes the job, then time them against each other.

    Parameters
    ----------
    job : Job
    contestants : sequence of Contestant
    dtype : str
    blocks : int
        Timed blocks for each contestant.
    pause : float or None
        The longest rest before a block, in seconds; None for the usual one.
    progress : Progress
    ceiling : bool
        Whether the ceilings are measured, which are those of the CPU.
    """
    problem, what, _ = job
    title = f"{problem.name}, {what}"
    able = [contestant for contestant in contestants if contestant.takes(problem, what, dtype)]
    if not able:
        return []
    calls = _checked(job, able, dtype, progress)
    if isinstance(calls, Refusal):
        return calls
    moved = traffic(problem, what)
    kinds = {(contestant.name, contestant.threads): (contestant.threads, contestant.cold) for contestant in able}
    limits: dict[tuple[int, bool], Ceilings] = {}

    def look() -> None:
        for threads, cold in set(kinds.values()) if ceiling else ():
            progress.update(f"{title}: peak and bandwidth")
            timing.rest(timing.PAUSE if pause is None else pause)
            found = ceilings.measure(moved, dtype, threads, cold=cold)
            limits[threads, cold] = found.better(limits.get((threads, cold)))

    look()
    samples = timing.interleaved(
        calls, blocks, pause=pause, progress=lambda block: progress.update(f"{title}: block {block + 1} of {blocks}")
    )
    look()
    return [
        Row(job, name, threads, dtype, taken, _ratios((name, threads), samples), limits.get(kinds[name, threads]))
        for (name, threads), taken in sorted(samples.items(), key=lambda item: item[0][1])
    ]


def _checked(job: Job, contestants: Sequence[Contestant], dtype: str, progress: Progress) -> dict[Key, Call] | Refusal:
    """The calls to time, each of which has computed the right result."""
    problem, what, _ = job
    gradients = what != "forward"
    calls: dict[Key, Call] = {}
    for exact in (True, False):
        operands = problem.operands(dtype, exact=exact, gradients=gradients)
        expected = Expected(problem, operands, exact=exact)
        for contestant in contestants:
            if exact and not contestant.exact:
                continue
            progress.update(f"{problem.name}, {what}: checking {contestant.name}")
            call = contestant.prepare(problem, what, operands)
            call.set_up()
            result = call.run()
            call.finish()
            arrays = contestant.arrays(what, result)
            missing = set(results(problem, what)) - set(arrays)
            wrong = f"no array for {', '.join(sorted(missing))}" if missing else expected.first_mismatch(arrays)
            if wrong:
                return Refusal(job, contestant.name, str(wrong))
            if not exact:
                calls[contestant.name, contestant.threads] = call
    return calls


def _ratios(key: Key, samples: Mapping[Key, Samples]) -> dict[str, Ratio]:
    """How many times as fast as the peers, and as itself with one thread."""
    name, threads = key
    own = samples[key].seconds
    others: dict[str, Sequence[float]] = {}
    if name not in PEERS:
        others = {peer: samples[peer, threads].seconds for peer in PEERS if (peer, threads) in samples}
        if others:
            others[BEST] = [min(block) for block in zip(*others.values(), strict=True)]
    if threads > 1 and (name, 1) in samples:
        others[ONE_THREAD] = samples[name, 1].seconds
    return {other: timing.paired_ratio(own, seconds) for other, seconds in others.items()}
