"""Measures a job: hold every contestant against the reference, then time them between two looks at the ceilings.

Called by `numba-ctconv bench`. Nothing is timed whose result is wrong. What depends on where it runs is a Target's to
say: on_cpu's or on_gpu's.
"""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from . import timing
from .ceilings import Ceilings
from .checking import Expected
from .contestants import Contestant, flops, results, traffic
from .peers import PEERS
from .progress import Progress
from .selection import Job
from .timing import Call, Ratio, Samples
from .workloads import Operands

Key = tuple[str, int]  # a contestant's name and its threads

BEST = "best"  # the faster of the peers, block by block
ONE_THREAD = "one_thread"  # the contestant itself, with one thread


class Target(Protocol):
    """Where jobs are measured."""

    @property
    def peers(self) -> Sequence[str]:
        """The contestants that others are compared with."""

    @property
    def ratios(self) -> Sequence[str]:
        """What a row is compared with: peers, BEST, ONE_THREAD."""

    @property
    def forgiving(self) -> bool:
        """Whether a contestant that is wrong or fails leaves the row to the others."""

    def operands(self, job: Job, dtype: str, *, exact: bool) -> Operands:
        """The host arrays of a job."""

    def expected(self, job: Job, operands: Operands, *, exact: bool) -> Expected:
        """What it should compute."""

    def look(self, job: Job, dtype: str, threads: int, *, cold: bool) -> Ceilings | None:
        """The ceilings at this moment, if they are known here."""

    def time(self, job: Job, calls: Mapping[Key, Call], blocks: int, progress: Callable[[int], None]) -> "Times":
        """Time the calls against each other."""


class Times(NamedTuple):
    """What a target measured, what it adds to the record of each contestant, and why it did not time others."""

    samples: Mapping[Key, Samples]
    more: Mapping[Key, Mapping[str, Any]]
    refused: Mapping[Key, str]


@dataclasses.dataclass(frozen=True)
class Row:
    """One contestant's time for one job."""

    job: Job
    contestant: str
    threads: int
    dtype: str
    samples: Samples
    ratios: Mapping[str, Ratio | None]  # how many times as fast; None where that was not measured
    ceilings: Ceilings | None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what only a GPU has

    def record(self) -> dict[str, Any]:
        """The row as JSON types, with the time of every block."""
        problem, what, full = self.job.problem, self.job.what, self.job.full
        seconds = statistics.median(self.samples.seconds)
        operations, moved = flops(problem, what), traffic(problem, what).bytes(self.dtype)
        floor = None if self.ceilings is None else self.ceilings.floor(operations)
        peak = None if self.ceilings is None else self.ceilings.peak
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
            "peak_gflops": peak and peak / 1e9,
            "loop_seconds": self.ceilings and self.ceilings.loop,
            "floor_seconds": floor,
            "of_peak": peak and operations / seconds / peak,
            "of_floor": floor and floor / seconds,
            **{column(name): ratio and ratio._asdict() for name, ratio in self.ratios.items()},
            **self.more,
        }


def column(name: str) -> str:
    """What a record calls the ratio to a contestant."""
    return f"times_{name.replace(' ', '_')}"


class Refusal(NamedTuple):
    """A contestant that is not timed, because its result is wrong or it fails."""

    job: Job
    contestant: str
    reason: str

    def __str__(self) -> str:
        """In words."""
        sizes = f", {self.job.sizes}" if self.job.sizes else ""
        return f"{self.job.problem.name}, {self.job.what}{sizes}, {self.contestant}: not timed: {self.reason}"

    def record(self) -> dict[str, Any]:
        """As JSON types."""
        job = self.job
        row = {"row": job.problem.name, "pass": job.what, "sizes": job.sizes, "contestant": self.contestant}
        return row | {"refused": self.reason}


class Outcome(NamedTuple):
    """The rows of a job, and who was refused; no rows where nobody takes it or could be timed."""

    rows: list[Row]
    refusals: list[Refusal]


def measure(
    job: Job, contestants: Sequence[Contestant], dtype: str, target: Target, *, blocks: int, progress: Progress
) -> Outcome:
    """Check every contestant that takes the job, then time them against each other.

    Parameters
    ----------
    job : Job
    contestants : sequence of Contestant
    dtype : str
    target : Target
    blocks : int
        Timed blocks for each contestant.
    progress : Progress
    """
    problem, what = job.problem, job.what
    title = f"{problem.name}, {what}"
    able = [contestant for contestant in contestants if contestant.takes(problem, what, dtype)]
    calls, refusals = _checked(job, able, dtype, target, progress)
    if not calls or (refusals and not target.forgiving):
        return Outcome([], refusals)
    kinds = {(one.name, one.threads): (one.threads, one.cold) for one in able if (one.name, one.threads) in calls}
    limits: dict[tuple[int, bool], Ceilings] = {}

    def look() -> None:
        for threads, cold in set(kinds.values()):
            progress.update(f"{title}: peak and bandwidth")
            found = target.look(job, dtype, threads, cold=cold)
            if found is not None:
                limits[threads, cold] = found.better(limits.get((threads, cold)))

    look()
    samples, more, refused = target.time(
        job, calls, blocks, lambda block: progress.update(f"{title}: block {block + 1} of {blocks}")
    )
    look()
    refusals += [Refusal(job, name, reason) for (name, _), reason in refused.items()]
    rows = []
    for key, taken in sorted(samples.items(), key=lambda item: item[0][1]):
        found = _ratios(key, samples, target.peers)
        ratios = {name: found.get(name) for name in target.ratios}
        rows.append(Row(job, *key, dtype, taken, ratios, limits.get(kinds[key]), more.get(key, {})))
    return Outcome(rows, refusals)


def _checked(
    job: Job, contestants: Sequence[Contestant], dtype: str, target: Target, progress: Progress
) -> tuple[dict[Key, Call], list[Refusal]]:
    """The calls to time, each of which has computed the right result; the first wrong one is enough if that ends it."""
    calls: dict[Key, Call] = {}
    refusals: dict[Key, Refusal] = {}
    for exact in (True, False):
        operands = target.operands(job, dtype, exact=exact)
        expected = target.expected(job, operands, exact=exact)
        for contestant in contestants:
            key = contestant.name, contestant.threads
            if key in refusals or (exact and not contestant.exact):
                continue
            progress.update(f"{job.problem.name}, {job.what}: checking {contestant.name}")
            try:
                call, wrong = _tried(job, contestant, operands, expected)
            except Exception as error:
                if not target.forgiving:
                    raise
                wrong = f"{type(error).__name__}: {error}"
            if wrong:
                calls.pop(key, None)
                refusals[key] = Refusal(job, contestant.name, wrong)
                if not target.forgiving:
                    return {}, list(refusals.values())
            elif not exact:
                calls[key] = call
    return calls, list(refusals.values())


def _tried(job: Job, contestant: Contestant, operands: Operands, expected: Expected) -> tuple[Call, str]:
    """A contestant's call, and what is wrong with its result."""
    call = contestant.prepare(job.problem, job.what, operands)
    call.set_up()
    result = call.run()
    call.finish()
    arrays = contestant.arrays(job.what, result)
    missing = set(results(job.problem, job.what)) - set(arrays)
    if missing:
        return call, f"no array for {', '.join(sorted(missing))}"
    mismatch = expected.first_mismatch(arrays, loose=not contestant.exact)
    return call, "" if mismatch is None else str(mismatch)


def _ratios(key: Key, samples: Mapping[Key, Samples], peers: Sequence[str] = PEERS) -> dict[str, Ratio]:
    """How many times as fast as the peers, and as itself with one thread."""
    name, threads = key
    own = samples[key].seconds
    others: dict[str, Sequence[float]] = {}
    if name not in peers:
        others = {peer: samples[peer, threads].seconds for peer in peers if (peer, threads) in samples}
        if others:
            others[BEST] = [min(block) for block in zip(*others.values(), strict=True)]
    if threads > 1 and (name, 1) in samples:
        others[ONE_THREAD] = samples[name, 1].seconds
    return {other: timing.paired_ratio(own, seconds) for other, seconds in others.items()}
