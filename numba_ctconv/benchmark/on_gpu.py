"""The benchmark on a GPU: its options, contestants and target. Called by the commands.

Ours works on torch's tensors where torch is a peer, so that both share memory, stream and graphs; on Numba's arrays
otherwise. torch stands for cuDNN twice, with the plan that cuDNN's heuristics choose and with the fastest that
cudnn.benchmark tries; torch keeps plans for each thread, so each has a thread of its own.
"""

import argparse
import contextlib
import functools
import importlib
import pathlib
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from . import draws, formats, gpu_ceilings, machine, measure, peers, report, timing
from .ceilings import Ceilings
from .checking import Expected
from .cold import STYLE as COLD
from .contestants import Contestant, traffic
from .device import graphs, host_has
from .formats import Format
from .gpu import GpuPlace, Library, NumbaArrays, Tensors, Worker
from .graphs import Backend, Replay, timed
from .measure import Key, Times
from .ours import Ours, Style
from .peers import Torch
from .progress import Progress
from .selection import SIZES, Job, Jobs, filling
from .setup import OptionError, Setup
from .timing import Call, Samples
from .workloads import Operands

RAISE_TO = 20.0  # GFLOP
MOST_BYTES = 2**30  # of a raised row's arrays
STYLE: Style = "layer"
TORCH, TUNED = "torch", "torch benchmark"
PEERS = (TORCH, TUNED)

MOST_REPLAYS = 50  # a block; each costs a flush of the cache as well
ROW_SECONDS = 4.0  # for all blocks of a job
SLOWEST = 1 / 12  # of that, for one call: three blocks of three contestants have to fit
HOST_CALLS = (5, 50)  # a block of the host's clock, fewest and most
PRODUCT = {"float64": 4096}  # rows and columns of the matrix product, where not:
LARGE = 8192
PROC = pathlib.Path("/proc/driver/nvidia/version")


class GpuTarget:
    """A GPU as a target: a contestant that is wrong, fails or is too slow leaves the row to the others.

    Parameters
    ----------
    backend : Backend
    kind : Format
    product : callable or None
        As gpu_ceilings takes it.
    budget : float
        Seconds that the blocks of a job may take.
    """

    peers = PEERS
    ratios = (*PEERS, measure.BEST)
    forgiving = True

    def __init__(self, backend: Backend, kind: Format, product: Callable[[], int] | None, budget: float) -> None:
        self._backend = backend
        self._kind = kind
        self._product = product
        self._budget = budget
        self._begun = time.monotonic()
        backend.nothing()  # compiles
        replay = backend.capture(backend.nothing)
        self._empty = statistics.median(timed(backend, replay, MOST_REPLAYS))

    def operands(self, job: Job, dtype: str, *, exact: bool) -> Operands:  # noqa: ARG002  # the format says it
        """Drawn from a pool."""
        return draws.operands(job.problem, self._kind, exact=exact, gradients=job.what != "forward")

    def expected(self, job: Job, operands: Operands, *, exact: bool) -> Expected:
        """In the run's format."""
        return Expected(job.problem, operands, exact=exact, kind=self._kind)

    def look(self, job: Job, dtype: str, threads: int, *, cold: bool) -> Ceilings:  # noqa: ARG002  # those of a CPU
        """Of the GPU as it is now."""
        moved = traffic(job.problem, job.what).bytes(dtype)
        return gpu_ceilings.measure(self._backend, self._kind, self._product, moved)

    def time(self, job: Job, calls: Mapping[Key, Call], blocks: int, progress: Callable[[int], None]) -> Times:
        """Replays in interleaved blocks; of published sizes the host's time for each call as well."""
        kept, refused = dict(calls), {}
        for key, call in calls.items():
            reason = self._unfit(call)
            if reason:
                refused[key] = reason
                del kept[key]
        if not kept:
            return Times({}, {}, refused)
        samples = timing.interleaved(
            kept, blocks, most_calls=MOST_REPLAYS, budget=self._budget, pause=0.0, progress=progress
        )
        hosts: dict[Key, Samples] = {}
        if job.sizes == "published":
            counts = {key: host_calls(statistics.median(taken.seconds)) for key, taken in samples.items()}
            hosts = timing.queueing(kept, counts, blocks)
        more = {key: self._more(job, call, hosts.get(key)) for key, call in kept.items()}
        return Times(samples, more, refused)

    def _unfit(self, call: Call) -> str:
        """Why a call is not timed; its graph is captured here, and replayed once, which uploads it."""
        longest = self._budget * SLOWEST
        try:
            call.set_up()
            taken = self._seconds(call)
            if taken > longest:
                return f"a call takes {taken:.2f} s, more than {longest:.2f} s (--row-seconds)"
            if call.clock is not None:
                call.clock(1)
        except Exception as error:  # noqa: BLE001  # the other contestants go on
            return f"{type(error).__name__}: {error}"
        return ""

    def _seconds(self, call: Call) -> float:
        """Of one call that has run before, between two events."""
        self._backend.wait()
        begin = self._backend.mark()
        call.run()
        end = self._backend.mark()
        self._backend.wait()
        return self._backend.seconds(begin, end)

    def _more(self, job: Job, call: Call, host: Samples | None) -> dict[str, Any]:
        uncaptured = call.clock.uncaptured if isinstance(call.clock, Replay) else None
        return {
            "sizes": job.sizes,
            "precision": self._kind.precision,
            "empty_seconds": self._empty,
            "elapsed_seconds": round(time.monotonic() - self._begun, 1),
            "uncaptured": uncaptured,
            "host_seconds": host and list(host.seconds),
            "host_calls_per_block": host and host.calls,
            "host_median": host and statistics.median(host.seconds),
        }


def host_calls(seconds: float) -> int:
    """How many calls of so many device seconds a block of the host's clock queues."""
    fewest, most = HOST_CALLS
    return max(fewest, min(most, int(timing.BLOCK_SECONDS / max(seconds, 1e-9))))


def jobs_of(options: argparse.Namespace) -> Jobs:
    """How rows are raised; refuses what only a CPU has, and formats that are none."""
    if COLD in (options.style or ()):
        raise OptionError(f"argument --style: {COLD!r} is about the caches of a CPU; got --device cuda")
    if options.limit is not None:
        raise OptionError("argument --limit: nothing is cut on a GPU; --raise says how far batches are raised")
    if options.threads is not None:
        raise OptionError("argument --threads: is about a CPU; got --device cuda")
    if options.precision == "tf32" and options.dtype != "float32":
        raise OptionError(f"argument --precision: 'tf32' is about float32; got --dtype {options.dtype}")
    return filling(options.sizes or SIZES, raise_to(options) * 1e9, MOST_BYTES, options.dtype)


def raise_to(options: argparse.Namespace) -> float:
    """GFLOP that batches are raised to."""
    return options.raise_to or RAISE_TO


@contextlib.contextmanager
def opened(options: argparse.Namespace, progress: Progress) -> Iterator[Setup]:
    """The contestants, with torch's settings as they need them; put back afterwards."""
    kind = formats.chosen(options.dtype, options.precision)
    facts = machine.describe() | {"nvidia_driver": nvidia_driver()}
    settings: dict[str, Any] = {"precision": kind.precision, "raise_gflop": raise_to(options), "most_bytes": MOST_BYTES}
    with contextlib.ExitStack() as stack:
        torch = _torch(options.peer, progress)
        progress.announce("starting; kernels compile on their first call")
        backend: Backend = graphs()
        library, product = _library(torch, kind, backend)
        if torch is not None:
            stack.enter_context(peers.kept_settings(torch, tf32=kind.precision == "tf32"))
            settings |= {"torch_cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
        place = GpuPlace(library, backend)
        contestants: list[Contestant] = [
            Ours(algorithm, place, style, 1)
            for algorithm in dict.fromkeys(options.algorithm or ["auto"])
            for style in dict.fromkeys(options.style or [STYLE])
        ]
        if torch is not None:
            contestants += torch_contestants(torch, library, backend, stack)
        settings["arrays"] = library.library
        target = GpuTarget(backend, kind, product, options.row_seconds or ROW_SECONDS)
        columns = report.gpu_columns([contestant.name for contestant in contestants])
        yield Setup(facts, settings, contestants, target, columns, report.GPU_MEANING)


def torch_contestants(torch: Any, library: Library, backend: Backend, stack: contextlib.ExitStack) -> list[Contestant]:
    """Two of torch, with cuDNN's heuristics and with its benchmark, in threads of their own until the stack closes."""
    found: list[Contestant] = []
    for name, tuned in ((TORCH, False), (TUNED, True)):
        worker = Worker(functools.partial(setattr, torch.backends.cudnn, "benchmark", tuned))
        stack.callback(worker.close)
        found.append(Torch(torch, GpuPlace(library, backend, worker), 1, name))
    return found


def matrix_product(torch: Any, tensors: Tensors, kind: Format) -> Callable[[], int]:
    """What queues a large product of random matrices in the format, and says how many operations it takes."""
    size = PRODUCT.get(kind.name, LARGE)
    dtype = getattr(torch, kind.name)
    a, b, c = (torch.randn(size, size, dtype=dtype, device=tensors.device) for _ in range(3))

    def run() -> int:
        with tensors.on_stream():
            torch.mm(a, b, out=c)
        return 2 * size**3

    return run


def nvidia_driver() -> str | None:
    """The version of NVIDIA's driver; None where neither the system nor nvidia-smi tells."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", PROC.read_text(encoding="ascii", errors="replace"))
    except OSError:
        found = None
    if found:
        return found[1]
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout  # noqa: S603  # fixed
    except (OSError, subprocess.SubprocessError):
        return None
    return told.splitlines()[0].strip() if told.strip() else None


def _torch(chosen: Sequence[str] | None, progress: Progress) -> Any:
    """torch, if it is a peer that is asked for and finds the GPU."""
    if "torch" not in (chosen or peers.PEERS) or not peers.installed("torch"):
        return None
    progress.announce("importing torch")
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return torch
    progress.announce("torch is left out: it finds no GPU")
    return None


def _library(torch: Any, kind: Format, backend: Backend) -> tuple[Library, Callable[[], int] | None]:
    if torch is None:
        if not host_has(kind):
            raise OptionError(f"argument --dtype: {kind.name} needs torch as a peer, or ml_dtypes")
        return NumbaArrays(kind, backend), None
    tensors = Tensors(torch, kind, backend)
    alone = gpu_ceilings.on_multiply_adds(kind) and kind.name != "float64"  # tensor cores multiply float64 too
    return tensors, None if alone else matrix_product(torch, tensors, kind)
