"""The benchmark on the CPU: its options, contestants and target. Called by the commands."""

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping

import numba

from . import ceilings, cold, machine, peers, report, timing
from .ceilings import Ceilings
from .checking import Expected
from .cold import Cold
from .contestants import Contestant, traffic
from .device import threads
from .measure import BEST, ONE_THREAD, Key, Times
from .ours import STYLES, Ours, Style
from .peers import PEERS
from .progress import Progress
from .selection import Job, Jobs, cut
from .setup import NO_PEER, OptionError, Setup
from .timing import Call
from .workloads import Operands

QUICK_LIMIT, LIMIT = 0.1, 4.0  # GFLOP
QUICK_STYLES: tuple[Style, ...] = ("function", "layer")
QUICK_PAUSE = 0.05  # seconds
DTYPES = ("float32", "float64")


class CpuTarget:
    """The CPU as a target: one wrong result ends a row, and the ceilings are measured around it.

    Parameters
    ----------
    pause : float or None
        The longest rest before a block, in seconds; None for the usual one.
    """

    peers = PEERS
    ratios = (*PEERS, BEST, ONE_THREAD)
    forgiving = False

    def __init__(self, pause: float | None) -> None:
        self._pause = pause

    def operands(self, job: Job, dtype: str, *, exact: bool) -> Operands:
        """Those of the problem."""
        return job.problem.operands(dtype, exact=exact, gradients=job.what != "forward")

    def expected(self, job: Job, operands: Operands, *, exact: bool) -> Expected:
        """In the operands' dtype."""
        return Expected(job.problem, operands, exact=exact)

    def look(self, job: Job, dtype: str, threads: int, *, cold: bool) -> Ceilings:
        """After a rest, as before a block."""
        timing.rest(timing.PAUSE if self._pause is None else self._pause)
        return ceilings.measure(traffic(job.problem, job.what), dtype, threads, cold=cold)

    def time(self, job: Job, calls: Mapping[Key, Call], blocks: int, progress: Callable[[int], None]) -> Times:  # noqa: ARG002  # the protocol's
        """In blocks with a pause before each."""
        return Times(timing.interleaved(calls, blocks, pause=self._pause, progress=progress), {}, {})


def jobs_of(options: argparse.Namespace) -> Jobs:
    """How rows are cut; refuses what only a GPU has."""
    if options.dtype not in DTYPES:
        known = ", ".join(map(repr, DTYPES))
        raise OptionError(f"argument --dtype: invalid choice: {options.dtype!r} (choose from {known} without a GPU)")
    for given, name in ((options.raise_to, "raise"), (options.sizes, "sizes"), (options.row_seconds, "row-seconds")):
        if given is not None:
            raise OptionError(f"argument --{name}: goes with --device cuda")
    if options.precision != "ieee":
        raise OptionError(f"argument --precision: {options.precision!r} goes with --device cuda")
    return cut(limit(options) * 1e9)


def limit(options: argparse.Namespace) -> float:
    """GFLOP of the largest job."""
    return options.limit or (QUICK_LIMIT if options.quick else LIMIT)


@contextlib.contextmanager
def opened(options: argparse.Namespace, progress: Progress) -> Iterator[Setup]:
    """The contestants, with Numba's and torch's settings as they need them; put back afterwards."""
    progress.announce("starting; kernels compile on their first call")
    counts = options.threads or [numba.get_num_threads()]
    with threads(max(counts)), contextlib.ExitStack() as stack:
        facts = machine.describe()
        ours: list[Contestant] = [
            Cold(algorithm, count) if style == cold.STYLE else Ours(algorithm, "cpu", style, count)
            for count in counts
            for algorithm in dict.fromkeys(options.algorithm or ["auto"])
            for style in dict.fromkeys(options.style or (QUICK_STYLES if options.quick else STYLES))
        ]
        wanted = [peer for peer in options.peer or PEERS if peer != NO_PEER and peers.installed(peer)]
        if wanted:
            progress.announce(f"importing {' and '.join(wanted)}")
        contestants = ours + stack.enter_context(peers.contestants(wanted, "cpu", counts))
        columns = report.columns([contestant.name for contestant in contestants], counts)
        target = CpuTarget(QUICK_PAUSE if options.quick else None)
        settings = {"threads": counts, "limit_gflop": limit(options)}
        yield Setup(facts, settings, contestants, target, columns, report.MEANING)
