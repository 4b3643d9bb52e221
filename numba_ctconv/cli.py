"""The command line, `numba-ctconv` and `python -m numba_ctconv`: options and exit statuses.

Reads the options and hands them to benchmark/commands. Exit status: 0 for success, 1 for a wrong result, 2 for options
that can't be met, 130 for an interrupt.
"""

# ruff: noqa: T201  # printing is what a command does

import argparse
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar, get_args

import numba

from . import __version__
from .benchmark import cold, commands, on_gpu, peers, verification
from .benchmark.commands import BLOCKS, QUICK_BLOCKS
from .benchmark.contestants import PASSES, Pass
from .benchmark.device import Device, threads
from .benchmark.formats import FORMATS
from .benchmark.on_cpu import LIMIT, QUICK_LIMIT
from .benchmark.ours import STYLES
from .benchmark.progress import Progress
from .benchmark.selection import SIZES
from .benchmark.setup import NO_PEER, OptionError
from .checks import PRECISIONS
from .warmup import DTYPES as WARMUP_DTYPES
from .warmup import PASSES as WARMUP_PASSES

Number = TypeVar("Number", int, float)
DEVICES: tuple[Device, ...] = get_args(Device)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, by default those of the process.

    Returns
    -------
    int
        The exit status.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    progress = Progress()
    try:
        with threads(options.threads if isinstance(options.threads, int) else None):
            status: int = options.run(options, progress)
        sys.stdout.flush()
    except OptionError as reason:
        progress.clear()
        options.parser.error(str(reason))
    except KeyboardInterrupt:
        progress.clear()
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone; keep Python from complaining when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


# --- options ----------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="numba-ctconv",
        description="1-D transposed convolution in Numba: measure it, check this installation, show what it runs on.",
    )
    parser.add_argument("--version", action="version", version=f"numba-ctconv {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--threads",
        type=_thread_count,
        metavar="N",
        help=f"threads, 1 to {numba.config.NUMBA_NUM_THREADS} here (NUMBA_NUM_THREADS); default: Numba's setting",
    )
    bench = subparsers.add_parser(
        "bench",
        help="time layers of published models",
        description="Times layers of published models, against torch and onnxruntime where they are installed, and "
        "against the machine's peak and memory. Every result is held against the reference before it is timed; exit "
        "status 1 where one is wrong.",
        epilog="Examples: numba-ctconv bench --quick | numba-ctconv bench 'hifigan*' --pass gradients --threads 1,2",
    )
    _add_bench_options(bench)
    bench.set_defaults(run=commands.bench, parser=bench)
    report = subparsers.add_parser(
        "report",
        help="make a short table from a file that bench wrote",
        description="Prints a Markdown table of a file that `bench --json` wrote: layer, time, GFLOP/s, share of the "
        "peak, ratio to each peer; the core rows, or those that are named, and the means over all rows of the file.",
    )
    _add_report_options(report)
    report.set_defaults(run=commands.show_results, parser=report)
    verify = subparsers.add_parser(
        "verify",
        parents=[common],
        help="check the results of this installation on this machine",
        description="Runs corner cases and small versions of real layers, forward and gradients, through every "
        "algorithm in float32 and float64, and compares all elements with the reference. Exit status 1 where one is "
        "wrong.",
    )
    verify.add_argument("--device", choices=DEVICES, help="default: cpu, and cuda where there is a GPU")
    verify.add_argument(
        "--quick",
        action="store_true",
        help="a few corner cases, and on a GPU without compute-sanitizer, which otherwise runs these where it is found",
    )
    verify.set_defaults(run=commands.verify, parser=verify)
    accuracy = subparsers.add_parser(
        "accuracy",
        help="show what the number formats of a GPU cost in accuracy",
        description="Shows the errors of layers of published models in float32, tf32, float16 and bfloat16 against "
        "float64, forward and gradients, on random data: of the GPU's own results, or, where there is none, of those "
        "that an emulator of its kernels computes.",
    )
    accuracy.add_argument("rows", nargs="*", metavar="ROW", help="rows by name or pattern (* and ?); default: four")
    accuracy.set_defaults(run=commands.accuracy, parser=accuracy, threads=None)
    info = subparsers.add_parser(
        "info",
        parents=[common],
        help="show versions, processor, threads, cache folder and GPU",
        description="Shows versions, processor features and the vector width in use, threads and threading layer, the "
        "folder of the compiled kernels, and the GPU.",
    )
    info.set_defaults(run=commands.info, parser=info)
    warm = subparsers.add_parser(
        "warmup",
        parents=[common],
        help="compile now what layers will need",
        description="Compiles all code that layers of published models, and others of their shapes, need, and keeps it "
        "on disk for new processes: while a container image is built, say. It serves only on the model of CPU that it "
        "was made on. numba_ctconv.warmup() does so for given layers.",
    )
    warm.add_argument("rows", nargs="*", metavar="ROW", help="rows by name or pattern (* and ?), out of all rows")
    warm.add_argument("--all", action="store_true", help="all rows, not only the core ones")
    warm.add_argument(
        "--pass", action="append", choices=WARMUP_PASSES, dest="passes", help="repeatable; default: all three"
    )
    warm.add_argument("--dtype", action="append", choices=WARMUP_DTYPES, help="repeatable; default: both")
    warm.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    warm.set_defaults(run=commands.warmup, parser=warm)
    return parser


def _add_bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("rows", nargs="*", metavar="ROW", help="rows by name or pattern (* and ?), out of all rows")
    which = bench.add_mutually_exclusive_group()
    which.add_argument("--core", action="store_true", default=None, help="only the core rows (default without ROW)")
    which.add_argument("--all", action="store_false", dest="core", help="all rows")
    bench.add_argument("--quick", action="store_true", help="a row of every kind, cut short: done within a minute")
    _add_pass_option(bench, "default: forward")
    bench.add_argument(
        "--threads",
        type=_thread_counts,
        metavar="N[,M]",
        help="numbers of threads, timed against each other; default: Numba's setting",
    )
    bench.add_argument(
        "--algorithm", action="append", choices=verification.ALGORITHMS, help="repeatable; default: auto"
    )
    bench.add_argument(
        "--style",
        action="append",
        choices=(*STYLES, cold.STYLE),
        help="call the function, which packs weights every time; a layer, which keeps them packed; or a layer with "
        "results in memory that is used again; or that with weights in no cache, because many layers take turns, on "
        f"inputs of at most {cold.LONGEST_INPUT} samples; repeatable; default: the first three, two with --quick; on a "
        f"GPU a {on_gpu.STYLE}",
    )
    bench.add_argument(
        "--peer",
        action="append",
        choices=(*peers.PEERS, NO_PEER),
        help="repeatable; default: all that are installed",
    )
    bench.add_argument(
        "--dtype", choices=tuple(FORMATS), default="float32", help="default: float32; halves with --device cuda"
    )
    bench.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    bench.add_argument(
        "--limit",
        type=_positive(float),
        metavar="GFLOP",
        help=f"cut the input of larger layers; default: {LIMIT:g}, {QUICK_LIMIT:g} with --quick; not on a GPU",
    )
    on_cuda = bench.add_argument_group("with --device cuda")
    on_cuda.add_argument(
        "--precision", choices=PRECISIONS, default="ieee", help="of float32, ours and torch's; default: ieee"
    )
    on_cuda.add_argument(
        "--sizes",
        action="append",
        choices=SIZES,
        help="rows as they are published, with the host's time for a call, or with their batches raised until they "
        "fill the GPU; repeatable; default: both",
    )
    on_cuda.add_argument(
        "--raise",
        type=_positive(float),
        dest="raise_to",
        metavar="GFLOP",
        help=f"what batches are raised to, within a GiB of arrays; default: {on_gpu.RAISE_TO:g}",
    )
    on_cuda.add_argument(
        "--row-seconds",
        type=_positive(float),
        metavar="S",
        help=f"what the blocks of a row and its sizes may take; default: {on_gpu.ROW_SECONDS:g}",
    )
    bench.add_argument(
        "--blocks",
        type=_positive(int),
        metavar="N",
        help=f"timed blocks; intervals need 6; default: {BLOCKS}, {QUICK_BLOCKS} with --quick",
    )
    bench.add_argument(
        "--json", type=pathlib.Path, metavar="FILE", help="append machine and rows to FILE, one JSON object a line"
    )
    bench.add_argument("--markdown", type=pathlib.Path, metavar="FILE", help="write the table to FILE as Markdown")


def _add_report_options(report: argparse.ArgumentParser) -> None:
    report.add_argument("file", type=pathlib.Path, metavar="FILE")
    report.add_argument("rows", nargs="*", metavar="ROW", help="rows by name or pattern; default: the core rows")
    report.add_argument("--contestant", default="auto layer", help='as the file names it; default: "auto layer"')
    report.add_argument("--threads", type=_positives, metavar="N[,M]", help="default: all in the file")
    _add_pass_option(report, "default: all in the file")


def _add_pass_option(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--pass",
        action="append",
        type=_passes,
        dest="passes",
        metavar="PASS",
        help=f"{', '.join(PASSES)} (all three at once); several with commas or repeated; {default}",
    )


def _thread_counts(text: str) -> list[int]:
    return [_thread_count(count) for count in text.split(",")]


def _positives(text: str) -> list[int]:
    return [_positive(int)(count) for count in text.split(",")]


def _thread_count(text: str) -> int:
    count = _positive(int)(text)
    if count > numba.config.NUMBA_NUM_THREADS:
        raise argparse.ArgumentTypeError(f"at most {numba.config.NUMBA_NUM_THREADS} (NUMBA_NUM_THREADS); got {text}")
    return count


def _positive(kind: type[Number]) -> Callable[[str], Number]:
    def convert(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            value = kind(0)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"a positive {kind.__name__} is expected; got {text!r}")
        return value

    return convert


def _passes(text: str) -> list[Pass]:
    names = text.split(",")
    for name in names:
        if name not in PASSES:
            raise argparse.ArgumentTypeError(f"{name!r} is no pass; choose from {', '.join(PASSES)}")
    return names  # type: ignore[return-value]  # mypy does not narrow by membership
