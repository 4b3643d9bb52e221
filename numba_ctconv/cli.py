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
from .benchmark import commands, peers, verification
from .benchmark.commands import BLOCKS, LIMIT, QUICK_BLOCKS, QUICK_LIMIT
from .benchmark.device import Device, threads
from .benchmark.progress import Progress

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
        with threads(options.threads):
            status: int = options.run(options, progress)
        sys.stdout.flush()
    except commands.OptionError as reason:
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
        parents=[common],
        help="time layers of published models",
        description="Times layers of published models, against torch where it is installed. Every result is held "
        "against the reference before it is timed; exit status 1 where one is wrong.",
        epilog="Examples: numba-ctconv bench --quick | numba-ctconv bench 'hifigan*' --pass gradients --threads 1",
    )
    _add_bench_options(bench)
    bench.set_defaults(run=commands.bench, parser=bench)
    verify = subparsers.add_parser(
        "verify",
        parents=[common],
        help="check the results of this installation on this machine",
        description="Runs corner cases and small versions of real layers, forward and gradients, through every "
        "algorithm in float32 and float64, and compares all elements with the reference. Exit status 1 where one is "
        "wrong.",
    )
    verify.add_argument("--device", choices=DEVICES, help="default: cpu, and cuda where there is a GPU")
    verify.set_defaults(run=commands.verify, parser=verify)
    info = subparsers.add_parser(
        "info",
        parents=[common],
        help="show versions, processor, threads, cache folder and GPU",
        description="Shows versions, processor features and the vector width in use, threads and threading layer, the "
        "folder of the compiled kernels, and the GPU.",
    )
    info.set_defaults(run=commands.info, parser=info)
    return parser


def _add_bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("rows", nargs="*", metavar="ROW", help="rows by name or pattern (* and ?), out of all rows")
    which = bench.add_mutually_exclusive_group()
    which.add_argument("--core", action="store_true", default=None, help="only the core rows (default without ROW)")
    which.add_argument("--all", action="store_false", dest="core", help="all rows")
    bench.add_argument("--quick", action="store_true", help="a row of every kind, cut short: done within a minute")
    bench.add_argument(
        "--pass",
        action="append",
        type=_passes,
        dest="passes",
        metavar="PASS",
        help=f"{', '.join(peers.PASSES)} (all three at once); several with commas or repeated; default: forward",
    )
    bench.add_argument(
        "--algorithm", action="append", choices=verification.ALGORITHMS, help="repeatable; default: auto"
    )
    bench.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="default: float32")
    bench.add_argument("--device", choices=DEVICES, default="cpu", help="default: cpu")
    bench.add_argument(
        "--limit",
        type=_positive(float),
        metavar="GFLOP",
        help=f"cut the input of larger layers; default: {LIMIT:g}, {QUICK_LIMIT:g} with --quick",
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


def _passes(text: str) -> list[peers.Pass]:
    names = text.split(",")
    for name in names:
        if name not in peers.PASSES:
            raise argparse.ArgumentTypeError(f"{name!r} is no pass; choose from {', '.join(peers.PASSES)}")
    return names  # type: ignore[return-value]  # mypy does not narrow by membership
