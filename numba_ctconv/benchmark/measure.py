"""Measures rows of the table: choose the problems, hold every contestant against the reference, then time them.

Called by `numba-ctconv bench`. Nothing is timed for a row in which a result is wrong.
"""

import dataclasses
import fnmatch
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import timing
from .checking import first_mismatch
from .peers import Contestant, Pass, flops, results
from .progress import Progress
from .timing import Call, Ratio, Samples
from .workloads import Operands, Problem, layer_problem, layers

# One row of every kind: wide and narrow channels, causal, depthwise, one output channel, dilated, a streaming frame.
QUICK_ROWS = (
    "hifigan_v1/up0",
    "bigvgan_v2_44k_512x/aa_up_C24",
    "piper_medium_xlow/up2",
    "encodec_24k/up1",
    "mimi_stream/up0",
    "conv_tasnet/decoder",
    "deep_tasnet_dilated/dec_d8",
)


class Job(NamedTuple):
    """A pass of a row, cut to the limit, and the row as it stands in the table."""

    problem: Problem
    what: Pass
    full: Problem


@dataclasses.dataclass(frozen=True)
class Row:
    """One contestant's time for one job."""

    job: Job
    contestant: str
    dtype: str
    samples: Samples
    ratio: Ratio | None  # how many times as fast as torch, where that was measured

    @property
    def seconds(self) -> float:
        """Median over the blocks."""
        return statistics.median(self.samples.seconds)

    @property
    def gflops(self) -> float:
        """Billions of floating-point operations a second."""
        return flops(self.job.problem, self.job.what) / self.seconds / 1e9

    def record(self) -> dict[str, Any]:
        """The row as JSON types, with the time of every block."""
        problem = self.job.problem
        return {
            "row": problem.name,
            "pass": self.job.what,
            "batch": problem.batch,
            "input_length": problem.input_length,
            "full_batch": self.job.full.batch,
            "full_input_length": self.job.full.input_length,
            "dtype": self.dtype,
            "contestant": self.contestant,
            "seconds": list(self.samples.seconds),
            "calls_per_block": self.samples.calls,
            "median": self.seconds,
            "spread": timing.spread(self.samples.seconds),
            "gflops": self.gflops,
            "times_torch": None if self.ratio is None else self.ratio._asdict(),
        }


class Refusal(NamedTuple):
    """A job that is not timed, because a contestant's result is wrong."""

    job: Job
    contestant: str
    reason: str

    def __str__(self) -> str:
        """In words."""
        return f"{self.job.problem.name}, {self.job.what}, {self.contestant}: not timed: {self.reason}"


def select(
    patterns: Sequence[str], *, core: bool, passes: Sequence[Pass], limit: float, quick: bool = False
) -> tuple[list[Job], list[str]]:
    """The jobs to measure, and the names of rows that have no training shape for the gradients asked for.

    Parameters
    ----------
    patterns : sequence of str
        Shell-style patterns of row names; none chooses every row.
    core : bool
        Only the core rows.
    passes : sequence of str
        "forward" takes the inference shape, the gradients that of training.
    limit : float
        Floating-point operations of a convolution; longer inputs are cut.
    quick : bool
        Without patterns, only QUICK_ROWS.

    Raises
    ------
    LookupError
        For a pattern that no row matches.
    """
    rows = [row for row in layers() if row["core"] or not core]
    names = [row["id"] for row in rows]
    wanted: set[str] = set()
    for pattern in patterns or (QUICK_ROWS if quick else ("*",)):
        matching = fnmatch.filter(names, pattern)
        if not matching:
            kind = "core rows" if core else "rows"
            raise LookupError(f"no row matches {pattern!r}; the {kind} are: {', '.join(names)}")
        wanted.update(matching)
    jobs, shapeless = [], []
    for row in rows:
        if row["id"] not in wanted:
            continue
        for what in passes:
            problem = layer_problem(row, "infer" if what == "forward" else "train")
            if problem is None:
                shapeless.append(f"{row['id']} ({what})")
            else:
                jobs.append(Job(problem.limited(limit), what, problem))
    return jobs, shapeless


def measure(
    job: Job,
    contestants: Sequence[Contestant],
    dtype: str,
    *,
    blocks: int,
    pause: float,
    progress: Progress,
) -> list[Row] | Refusal:
    """Check every contestant on one job, then time them against each other."""
    problem, what, _ = job
    title = f"{problem.name}, {what}"
    operands = problem.operands(dtype, exact=False)
    integers = problem.operands(dtype)
    calls: dict[str, Call] = {}
    for contestant in contestants:
        progress.update(f"{title}: checking {contestant.name}")
        reason = _wrong(job, contestant, integers, exact=True) if contestant.exact else None
        calls[contestant.name] = contestant.prepare(problem, what, operands)
        reason = reason or _wrong(job, contestant, operands, exact=False)
        if reason:
            return Refusal(job, contestant.name, reason)
    del integers
    samples = timing.interleaved(
        calls, blocks, pause=pause, progress=lambda block: progress.update(f"{title}: block {block + 1} of {blocks}")
    )
    return [
        Row(job, name, dtype, taken, None if name == "torch" else _times_torch(taken, samples))
        for name, taken in samples.items()
    ]


def geometric_means(rows: Sequence[Row]) -> dict[tuple[str, Pass], tuple[float, int]]:
    """For every contestant and pass, the geometric mean of its ratios to torch, and over how many rows."""
    ratios: dict[tuple[str, Pass], list[float]] = {}
    for row in rows:
        if row.ratio is not None:
            ratios.setdefault((row.contestant, row.job.what), []).append(row.ratio.median)
    return {key: (statistics.geometric_mean(values), len(values)) for key, values in ratios.items()}


def _times_torch(own: Samples, samples: dict[str, Samples]) -> Ratio | None:
    return timing.paired_ratio(own.seconds, samples["torch"].seconds) if "torch" in samples else None


def _wrong(job: Job, contestant: Contestant, operands: Operands, *, exact: bool) -> str | None:
    """What is wrong with a contestant's result, or None."""
    problem, what, _ = job
    run, finish = contestant.prepare(problem, what, operands)
    result = run()
    finish()
    arrays = contestant.arrays(what, result)
    missing = set(results(problem, what)) - set(arrays)
    if missing:
        return f"no array for {', '.join(sorted(missing))}"
    mismatch = first_mismatch(problem, operands, arrays, exact=exact)
    return None if mismatch is None else str(mismatch)
