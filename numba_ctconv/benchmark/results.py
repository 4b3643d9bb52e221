"""Reads the files that `numba-ctconv bench --json` wrote, and makes the short table of the README from one.

Called by `numba-ctconv report`. A figure that is in no such file is in no table.
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..published import layers
from . import machine, report
from .measure import BEST
from .report import Column, Record
from .selection import matching

KEY = ("row", "pass", "dtype", "threads", "contestant", "sizes", "precision")  # the last two are a GPU's
SAME = ("cpu", "gpu", "vector_bits", "python", "numba_ctconv", *machine.PACKAGES)  # what runs in one table must share


class Results(NamedTuple):
    """The machine and the options of the last run in a file, and of every row the last record."""

    machine: dict[str, Any]
    options: Record
    records: list[Record]


class UnfitFileError(Exception):
    """A file that no table can be made from; the text says why."""


def read(path: pathlib.Path) -> Results:
    """All runs of a file, which are of one machine and one set of versions."""
    heads: list[dict[str, Any]] = []
    records: dict[tuple[Any, ...], Record] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            if "machine" in record:
                heads.append(record)
            elif "refused" not in record:
                records[tuple(record[key] for key in KEY[:5]) + tuple(record.get(key) for key in KEY[5:])] = record
    except OSError as reason:
        raise UnfitFileError(f"{path} can't be read: {reason.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UnfitFileError(f"{path} is not a file that `numba-ctconv bench --json` wrote") from None
    if not heads or not records:
        raise UnfitFileError(f"{path} holds no results")
    for head in heads[:-1]:
        for fact in SAME:
            if head["machine"].get(fact) != heads[-1]["machine"].get(fact):
                raise UnfitFileError(f"{path} holds runs of different machines or versions: {fact} differs")
    return Results(heads[-1]["machine"], heads[-1]["options"], list(records.values()))


def short_table(
    path: pathlib.Path, patterns: Sequence[str], contestant: str, threads: Sequence[int], passes: Sequence[str]
) -> str:
    """Machine, a table of the core rows or those that the patterns name, and the means over all rows, as Markdown.

    Raises
    ------
    UnfitFileError
        For a file that can't be read or holds nothing of what is asked for.
    LookupError
        For a pattern that no row of the file matches.
    """
    results = read(path)
    kept = [
        record
        for record in results.records
        if record["contestant"] == contestant
        and (not threads or record["threads"] in threads)
        and (not passes or record["pass"] in passes)
    ]
    if not kept:
        known = sorted({f"{r['contestant']} ({r['pass']}, threads {r['threads']})" for r in results.records})
        raise UnfitFileError(f"{path} holds no rows of that kind; it holds {', '.join(known)}")
    names = list(dict.fromkeys(record["row"] for record in kept))
    core = {row["id"] for row in layers() if row["core"]} & set(names)
    shown = matching(patterns, names, "rows of the file") if patterns else core or set(names)
    rows = [record for record in kept if record["row"] in shown]
    options = results.options
    formats = " and ".join(dict.fromkeys(map(report.number_format, rows)))
    head = (
        f"{machine.HEADLINES[options.get('device', 'cpu')](results.machine)}; {options['started'][:10]}; {contestant}, "
        f"{formats}, {_sized(options)}, medians of {options['blocks']} blocks."
    )
    return "\n".join(
        [
            head,
            "",
            report.markdown(rows, _short_columns(kept)),
            "",
            *(f"- {line}" for line in report.summary(kept)),
        ]
    )


def _sized(options: Record) -> str:
    """How the layers' sizes were chosen."""
    if "raise_gflop" in options:
        return f"batches raised to {options['raise_gflop']:g} GFLOP"
    return f"layers cut to {options['limit_gflop']:g} GFLOP"


def _short_columns(records: Sequence[Record]) -> list[Column]:
    """Layer, time, speed, share of the peak and the ratio to each peer; and what differs between the records."""
    several = {key: len({record.get(key) for record in records}) > 1 for key in ("pass", "sizes", "threads")}
    formats = {report.number_format(record) for record in records}
    on_gpu = "sizes" in records[0]
    unit, gflops = ("TFLOP/s", 1e3) if on_gpu else ("GFLOP/s", 1.0)
    peers = [peer for peer in report.compared(records) if peer != BEST]
    return [
        Column("layer", 0, lambda record: record["row"], left=True),
        *([Column("pass", 0, lambda record: record["pass"], left=True)] * several["pass"]),
        *([Column("format", 0, report.number_format, left=True)] * (len(formats) > 1)),
        *([Column("sizes", 0, lambda record: record["sizes"], left=True)] * several["sizes"]),
        *([Column("threads", 0, lambda record: str(record["threads"]))] * several["threads"]),
        Column("N × L", 0, report.batch_and_length),
        Column("ms", 0, report.milliseconds),
        Column(unit, 0, lambda record: f"{record['gflops'] / gflops:.1f}"),
        Column("of peak", 0, lambda record: "-" if record["of_peak"] is None else f"{100 * record['of_peak']:.0f} %"),
        *([Column("of copy", 0, report.of_copy)] * on_gpu),
        *(Column(f"× {peer}", 0, report.times(peer)) for peer in peers),
    ]
