"""Writes what was measured: a table as it grows, JSON lines as it grows, a Markdown table of the whole.

Called by `numba-ctconv bench`. Figures are written as measured; nothing is read back or edited.
"""

import json
from collections.abc import Sequence
from typing import IO, Any

from . import timing
from .measure import Job, Row, geometric_means
from .timing import Ratio

HEADINGS = ("row", "pass", "N × L", "contestant", "ms", "spread", "GFLOP/s", "times torch [95 %]")
MEANING = (
    "ms: median over the blocks; spread: interquartile range over median; "
    "times torch: torch's time over own, median of the blocks' ratios, with its interval."
)


class Table:
    """A plain table, printed line by line; the widths are known from the jobs."""

    def __init__(self, jobs: Sequence[Job], contestants: Sequence[str], stream: IO[str]) -> None:
        widest = [
            max(len(job.problem.name) for job in jobs),
            max(len(job.what) for job in jobs),
            max(len(_size(job)) for job in jobs),
            max(len(name) for name in contestants),
            9,
            7,
            8,
            19,
        ]
        self._widths = [max(width, len(heading)) for width, heading in zip(widest, HEADINGS, strict=True)]
        self._stream = stream
        self._line(HEADINGS)
        self._line(["-" * width for width in self._widths])

    def add(self, row: Row) -> None:
        """Print one row."""
        self._line(_cells(row))

    def _line(self, cells: Sequence[str]) -> None:
        text = [
            cell.ljust(width) if place in (0, 1, 3) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, self._widths, strict=True))
        ]
        print("  ".join(text).rstrip(), file=self._stream, flush=True)


class JsonLines:
    """A file of JSON objects, one a line: the machine first, then every row when it was measured."""

    def __init__(self, stream: IO[str], machine: dict[str, Any], options: dict[str, Any]) -> None:
        self._stream = stream
        self._write({"machine": machine, "options": options})

    def add(self, row: Row) -> None:
        """Append one row."""
        self._write(row.record())

    def _write(self, record: dict[str, Any]) -> None:
        self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._stream.flush()


def markdown(rows: Sequence[Row], headline: str) -> str:
    """The rows as a Markdown table under a line that names the machine."""
    rule = [":--" if place in (0, 1, 3) else "--:" for place in range(len(HEADINGS))]
    table = [_pipes(HEADINGS), _pipes(rule), *(_pipes(_cells(row)) for row in rows)]
    return "\n".join([headline, "", *table, "", *summary(rows), MEANING, ""])


def summary(rows: Sequence[Row]) -> list[str]:
    """The geometric means of the ratios to torch, a line for each contestant and pass."""
    return [
        f"geometric mean, times torch: {mean:.2f} ({contestant}, {what}, {count} row{'s' * (count != 1)})"
        for (contestant, what), (mean, count) in geometric_means(rows).items()
    ]


def _cells(row: Row) -> list[str]:
    spread = f"{100 * timing.spread(row.samples.seconds):.1f} %"
    milliseconds = f"{1e3 * row.seconds:#.4g}".rstrip(".")
    return [
        row.job.problem.name, row.job.what, _size(row.job), row.contestant, milliseconds, spread, f"{row.gflops:.2f}",
        _ratio(row.ratio),
    ]  # fmt: skip


def _size(job: Job) -> str:
    """Batch and length, and those that the row has where they were cut."""
    problem, full = job.problem, job.full
    cut = f" of {full.batch} × {full.input_length}" if problem != full else ""
    return f"{problem.batch} × {problem.input_length}{cut}"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    if ratio.low is None or ratio.high is None:
        return f"{ratio.median:.2f}"
    return f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def _pipes(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
