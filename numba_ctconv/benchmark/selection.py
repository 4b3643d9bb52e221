"""Chooses what is measured: rows of the table by pattern, jobs for every pass of theirs. Called by the commands.

On a CPU a job is a row cut to what takes seconds; on a GPU a row is one job as it stands, and one with its batch raised
until the chip is filled.
"""

import fnmatch
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

from ..published import layers
from .contestants import Pass, traffic
from .workloads import Problem, layer_problem

Sizes = Literal["published", "raised"]
SIZES: tuple[Sizes, ...] = get_args(Sizes)

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
    """A pass of a row, cut or raised, and the row as it stands in the table."""

    problem: Problem
    what: Pass
    full: Problem
    sizes: Sizes | None = None  # of a GPU's jobs


Jobs = Callable[[Problem, Pass], list[Job]]


def cut(limit: float) -> Jobs:
    """One job: the input cut until a convolution takes at most so many operations."""
    return lambda problem, what: [Job(problem.limited(limit), what, problem)]


def filling(sizes: Sequence[Sizes], flops: float, most_bytes: float, dtype: str) -> Jobs:
    """A job for each of the sizes: the row as it stands, and raised."""

    def jobs(problem: Problem, what: Pass) -> list[Job]:
        problems = {"published": problem, "raised": raised(problem, what, flops, most_bytes, dtype)}
        return [Job(problems[name], what, problem, name) for name in sizes]

    return jobs


def raised(problem: Problem, what: Pass, flops: float, most_bytes: float, dtype: str) -> Problem:
    """The problem with its batch raised until a convolution takes so many operations.

    Where its arrays would take more than `most_bytes` by then, as far as they don't; never below its own batch.
    """
    if problem.batch is None:
        return problem
    one, two = (problem.with_length(batch, problem.input_length) for batch in (1, 2))
    alone, both = (traffic(some, what).bytes(dtype) for some in (one, two))
    item, fixed = both - alone, 2 * alone - both
    batch = min(math.ceil(flops / one.flops), int((most_bytes - fixed) // item))
    return problem.with_length(max(problem.batch, batch), problem.input_length)


def matching(patterns: Sequence[str], names: Sequence[str], kind: str) -> set[str]:
    """The names that shell-style patterns match.

    Raises
    ------
    LookupError
        For a pattern that matches none; `kind` says what the names are.
    """
    wanted: set[str] = set()
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise LookupError(f"no row matches {pattern!r}; the {kind} are: {', '.join(names)}")
        wanted.update(found)
    return wanted


def select(
    patterns: Sequence[str], *, core: bool, passes: Sequence[Pass], jobs_of: Jobs, quick: bool = False
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
    jobs_of : callable
        The jobs of a problem and pass: :func:`cut` or :func:`filling`.
    quick : bool
        Without patterns, only QUICK_ROWS.

    Raises
    ------
    LookupError
        For a pattern that no row matches.
    """
    rows = [row for row in layers() if row["core"] or not core]
    names = [row["id"] for row in rows]
    wanted = matching(patterns or (QUICK_ROWS if quick else ("*",)), names, "core rows" if core else "rows")
    jobs, shapeless = [], []
    for row in rows:
        if row["id"] not in wanted:
            continue
        for what in passes:
            problem = layer_problem(row, "infer" if what == "forward" else "train")
            if problem is None:
                shapeless.append(f"{row['id']} ({what})")
            else:
                jobs += jobs_of(problem, what)
    return jobs, shapeless
