"""Writes what was measured: a table as it grows, JSON lines as it grows, a Markdown table, geometric means.

A row comes as the record that stands in the JSON file, so that a file is reported as the run that wrote it. Figures are
written as measured; nothing is edited.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

from .measure import BEST, ONE_THREAD, column
from .peers import PEERS

Record = Mapping[str, Any]

CONTESTANTS = ("torch", "torch benchmark", "onnxruntime")  # of all devices, that others are compared with
PRIVATE = ("cache", "no_gpu")  # facts of a machine that say nothing about its speed


class Column(NamedTuple):
    """A heading, how wide its cells are at least, and what stands in them."""

    heading: str
    width: int
    cell: Callable[[Record], str]
    left: bool = False


def columns(contestants: Sequence[str], threads: Sequence[int]) -> list[Column]:
    """The columns that have something to say of a CPU."""
    peers = [peer for peer in PEERS if peer in contestants]
    return [
        Column("row", 29, lambda record: record["row"], left=True),
        Column("pass", 11, lambda record: record["pass"], left=True),
        Column("N × L", 15, size),
        Column("threads", 7, lambda record: str(record["threads"])),
        Column("contestant", max(map(len, contestants)), lambda record: record["contestant"], left=True),
        Column("ms", 7, milliseconds),
        Column("spread", 7, lambda record: f"{100 * record['spread']:.1f} %"),
        Column("GFLOP/s", 7, lambda record: f"{record['gflops']:.2f}"),
        Column("of peak", 7, percent("of_peak")),
        Column("of floor", 8, percent("of_floor")),
        *(Column(f"× {peer}", 7, times(peer)) for peer in peers),
        *([Column("× best [95 %]", 19, times(BEST, interval=True))] * bool(peers)),
        *([Column("× 1 thread", 10, times(ONE_THREAD))] * (1 in threads and max(threads) > 1)),
    ]


def gpu_columns(contestants: Sequence[str]) -> list[Column]:
    """Those of a GPU: the row's sizes, the share of copy bandwidth, and the host's time for a call."""
    peers = [name for name in contestants if name.startswith("torch")]
    return [
        Column("row", 29, lambda record: record["row"], left=True),
        Column("pass", 11, lambda record: record["pass"], left=True),
        Column("sizes", 9, lambda record: record["sizes"], left=True),
        Column("N × L", 15, batch_and_length),
        Column("contestant", max(map(len, contestants)), lambda record: record["contestant"], left=True),
        Column("ms", 8, lambda record: milliseconds(record) + "*" * (record["uncaptured"] is not None)),
        Column("spread", 7, lambda record: f"{100 * record['spread']:.1f} %"),
        Column("TFLOP/s", 7, lambda record: f"{record['gflops'] / 1e3:.3g}"),
        Column("of peak", 7, percent("of_peak")),
        Column("of copy", 7, of_copy),
        Column("of floor", 8, percent("of_floor")),
        Column("host µs", 7, microseconds),
        *(Column(f"× {peer}", 7, times(peer)) for peer in peers),
        *([Column("× best [95 %]", 19, times(BEST, interval=True))] * bool(peers)),
    ]


GPU_MEANING = (
    "ms: of a replayed CUDA graph, the second-level cache overwritten before it, median over the blocks (*: queued, "
    "as it can't be captured); spread: interquartile range over median; of peak: operations over those of multiply- "
    "adds in registers (full float32, float64) or of a large matrix product of torch's (the rest); of copy: bytes of "
    "operands and results, each once, over those that a copy of device memory moves in the same time; of floor: the "
    "longer of the two bounds over ms; host µs: of a call that is only queued; × torch, × torch benchmark, × best: "
    "time of torch with cudnn.benchmark off and on, and of the faster of both, over own, median of the blocks' "
    "ratios."
)


MEANING = (
    "ms: median over the blocks; spread: interquartile range over median; of peak: GFLOP/s over those of multiply-adds "
    "in registers; of floor: the longer of the operations at that peak and of a plain loop that reads and writes "
    "arrays of the same sizes (for a cold layer, that reads its weights from memory), over ms; × torch, × onnxruntime, "
    "× best: the peer's time, or that of the faster one, over own, median of the blocks' ratios; × 1 thread: the same "
    "against itself."
)


class Table:
    """A plain table, printed line by line."""

    def __init__(self, columns: Sequence[Column], stream: IO[str]) -> None:
        self._columns = columns
        self._stream = stream
        self._line([column.heading for column in columns])
        self._line(["-" * self._width(column) for column in columns])

    def add(self, record: Record) -> None:
        """Print one row."""
        self._line([column.cell(record) for column in self._columns])

    def _line(self, cells: Sequence[str]) -> None:
        text = [
            cell.ljust(self._width(column)) if column.left else cell.rjust(self._width(column))
            for cell, column in zip(cells, self._columns, strict=True)
        ]
        print("  ".join(text).rstrip(), file=self._stream, flush=True)

    @staticmethod
    def _width(column: Column) -> int:
        return max(column.width, len(column.heading))


class JsonLines:
    """A file of JSON objects, one a line: the machine first, then every row when it was measured."""

    def __init__(self, stream: IO[str], machine: Record, options: Record) -> None:
        self._stream = stream
        self._write({"machine": {k: v for k, v in machine.items() if k not in PRIVATE}, "options": options})

    def add(self, record: Record) -> None:
        """Append one row."""
        self._write(record)

    def _write(self, record: Record) -> None:
        self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._stream.flush()


def markdown(records: Sequence[Record], columns: Sequence[Column]) -> str:
    """The rows as a Markdown table."""
    rule = [":--" if column.left else "--:" for column in columns]
    table = [[column.heading for column in columns], rule, *([c.cell(r) for c in columns] for r in records)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def summary(records: Sequence[Record]) -> list[str]:
    """A line for what was measured alike: geometric means of the ratios, and what lies below 1."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    formats = {number_format(record) for record in records}
    for record in records:
        if record[f"times_{BEST}"] is not None:
            kind = (number_format(record),) if len(formats) > 1 else ()
            sizes = record.get("sizes") or _counted(record["threads"], "thread")
            groups.setdefault((record["contestant"], record["pass"], *kind, sizes), []).append(record)
    lines = []
    for alike, group in groups.items():
        means = []
        for name in compared(group):
            ratios = [record[column(name)]["median"] for record in group if record[column(name)] is not None]
            means.append(f"{name} {statistics.geometric_mean(ratios):.2f}")
        slower = [r["row"] for r in group if (r[f"times_{BEST}"]["high"] or 1.0) < 1.0]
        lines.append(
            f"geometric mean, times {', '.join(means)} ({', '.join(alike)}, {_counted(len(group), 'row')}); "
            f"slower than the best: {', '.join(slower) or 'none'}"
        )
    return lines


def compared(records: Sequence[Record]) -> list[str]:
    """What records have ratios to, the best of the peers first."""
    names = [BEST, *CONTESTANTS]
    return [name for name in names if any(record.get(column(name)) is not None for record in records)]


def number_format(record: Record) -> str:
    """The dtype, and where it has several on a GPU the precision."""
    precise = record["dtype"] == "float32" and record.get("precision")
    return f"{record['dtype']} ({record['precision']})" if precise else str(record["dtype"])


def batch_and_length(record: Record) -> str:
    """As they were measured."""
    return f"{record['batch']} × {record['input_length']}"


def size(record: Record) -> str:
    """Batch and length, and those that the row has where they were cut."""
    whole = record["full_batch"], record["full_input_length"]
    cut = f" of {whole[0]} × {whole[1]}" if (record["batch"], record["input_length"]) != whole else ""
    return batch_and_length(record) + cut


def milliseconds(record: Record) -> str:
    """The median of the blocks."""
    return f"{1e3 * record['median']:#.4g}".rstrip(".")


def times(name: str, *, interval: bool = False) -> Callable[[Record], str]:
    """The cell of a ratio."""

    def cell(record: Record) -> str:
        ratio = record[column(name)]
        if ratio is None:
            return "-"
        if not interval or ratio["low"] is None:
            return f"{ratio['median']:.2f}"
        return f"{ratio['median']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"

    return cell


def of_copy(record: Record) -> str:
    """The share of the bandwidth of a copy."""
    return "-" if record["loop_seconds"] is None else f"{100 * record['loop_seconds'] / record['median']:.1f} %"


def microseconds(record: Record) -> str:
    """The median of the host's time for a call."""
    return "-" if record["host_median"] is None else f"{1e6 * record['host_median']:.1f}"


def percent(name: str) -> Callable[[Record], str]:
    """The cell of a share."""
    return lambda record: "-" if record[name] is None else f"{100 * record[name]:.1f} %"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
