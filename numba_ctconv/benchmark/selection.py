"""Chooses what is measured: rows of the table by pattern, a job for every pass of theirs. Called by the commands."""

import fnmatch
from collections.abc import Sequence
from typing import NamedTuple

from ..published import layers
from .contestants import Pass
from .workloads import Problem, layer_problem

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
                jobs.append(Job(problem.limited(limit), what, problem))
    return jobs, shapeless
