"""Device time: a call captured in a CUDA graph and replayed, the second-level cache overwritten before every replay.

Used by gpu's places. What knows a stream, events and graphs is a Backend, cuda.graphs' on a GPU; the loop takes any.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, Protocol

FLUSHES = 8  # times the second-level cache: long enough for the host to queue what comes after it
LEAST_FLUSHED = 64 * 2**20  # bytes


class Backend(Protocol):
    """What timing asks of a GPU."""

    stream: Any  # on which all is queued

    def capture(self, run: Callable[[], Any]) -> Callable[[], None]:
        """What replays the work that `run` queues on the stream; `run` has run before."""

    def flush(self) -> None:
        """Queue writes that leave nothing of the arrays in the second-level cache."""

    def mark(self) -> Any:
        """An event after all that is queued by now."""

    def seconds(self, begin: Any, end: Any) -> float:
        """Between two events, both reached."""

    def wait(self) -> None:
        """Until all that is queued on the GPU is done."""

    def copy(self) -> int:
        """Queue a copy from device memory to device memory; the bytes that it reads and writes."""

    def multiply_adds(self, dtype: str) -> int:
        """Queue multiply-adds in registers; how many floating-point operations they are."""

    def nothing(self) -> None:
        """Queue a kernel that does nothing."""


def flushed_bytes(cache: int) -> int:
    """How much is written for a second-level cache of so many bytes."""
    return max(FLUSHES * cache, LEAST_FLUSHED)


def timed(backend: Backend, run: Callable[[], Any], times: int, *, flush: bool = True) -> list[float]:
    """Seconds of each of so many runs on the GPU; all are queued before anything is waited for."""
    backend.wait()
    marks = []
    for _ in range(times + 1):  # the first one wakes the GPU
        if flush:
            backend.flush()
        begin = backend.mark()
        run()
        marks.append((begin, backend.mark()))
    backend.wait()
    return [backend.seconds(begin, end) for begin, end in marks[1:]]


class Replay:
    """A clock of timing's calls: seconds of a replay, the median of so many.

    It captures at its first use. What can't be captured is queued by the host between the events instead, which for
    small work counts the host's time too: `uncaptured` then says why.
    """

    def __init__(self, backend: Backend, capture: Callable[[], Callable[[], None]], run: Callable[[], Any]) -> None:
        self.uncaptured: str | None = None
        self._backend = backend
        self._capture = capture
        self._run = run
        self._replay: Callable[[], Any] | None = None

    def __call__(self, calls: int) -> float:
        """Time so many replays."""
        if self._replay is None:
            self._replay = self._captured()
        return statistics.median(timed(self._backend, self._replay, calls))

    def _captured(self) -> Callable[[], Any]:
        try:
            for _ in range(2):  # what is made at a first call, or looked at in a second, is no part of a graph
                self._run()
                self._backend.wait()
            return self._capture()
        except Exception as reason:  # noqa: BLE001  # whatever a library raises that does not let itself be captured
            first = reason
            while first.__context__ is not None and isinstance(first.__context__, Exception):
                first = first.__context__  # what broke the capture, not what was said of its end
            self.uncaptured = f"{type(first).__name__}: {' '.join(str(first).split())[:200]}"
            return self._run


def queued(backend: Backend, run: Callable[[], Any], calls: int) -> float:
    """Seconds of the host for each of so many calls, which nobody waits for."""
    backend.wait()
    start = time.perf_counter()
    for _ in range(calls):
        run()
    end = time.perf_counter()
    backend.wait()
    return (end - start) / calls
