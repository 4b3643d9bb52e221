"""Places on a GPU: arrays of Numba's or tensors of torch's, and calls on them timed by replayed graphs.

Made by on_gpu. Tensors take torch, which its caller imported; on a CPU they serve torch's own contestant and the tests.
"""

import concurrent.futures
import contextlib
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from .device import Device, DeviceArrays, Memory
from .formats import Format
from .graphs import Backend, Replay, queued
from .timing import Call, nothing

Result = TypeVar("Result")


class Library(Memory, Protocol):
    """A memory on a GPU, with its library's way onto the backend's stream and into a graph."""

    library: str
    keywords: dict[str, Any]

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Where the library's work goes to the stream."""

    def capture(self, run: Callable[[], Any]) -> Callable[[], None]:
        """What replays the work that `run` queues there."""


class NumbaArrays(DeviceArrays):
    """Numba's arrays; calls are told the stream. Their memory comes from the driver, also while a graph is captured."""

    def __init__(self, kind: Format, backend: Backend) -> None:
        super().__init__(kind)
        self.keywords: dict[str, Any] = {"stream": backend.stream}
        self._backend = backend

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Nothing: each call says it."""
        return contextlib.nullcontext()

    def capture(self, run: Callable[[], Any]) -> Callable[[], None]:
        """By the driver."""
        return self._backend.capture(run)


class Downloaded:
    """A tensor as checking looks at it: shape, dtype, and the elements that it picks, which alone come to the host."""

    def __init__(self, torch: Any, tensor: Any, kind: Format) -> None:
        self._torch = torch
        self._tensor = tensor
        name = str(tensor.dtype).removeprefix("torch.")
        self.shape = tuple(tensor.shape)
        self.dtype: Any = kind.host if name == kind.name else name

    def __getitem__(self, where: tuple[Any, ...]) -> Any:
        picked = tuple(self._torch.from_numpy(np.ascontiguousarray(w)).to(self._tensor.device) for w in where)
        return self._tensor[picked].to(self._torch.float64).cpu().numpy()


class Tensors:
    """torch's tensors, of the run's format, on the current GPU.

    Parameters
    ----------
    torch : module
    kind : Format
    backend : Backend, optional
        Whose stream torch works on; without one, the tensors are in host memory.
    """

    library = "torch"

    def __init__(self, torch: Any, kind: Format, backend: Backend | None = None) -> None:
        self.device: Device = "cpu" if backend is None else "cuda"
        self.precision: str | None = kind.precision
        self.keywords: dict[str, Any] = {}  # the stream is torch's current one
        self._torch = torch
        self._kind = kind
        self._dtype = getattr(torch, kind.name)
        self._stream = None if backend is None else torch.cuda.ExternalStream(backend.stream)

    def put(self, array: Any) -> Any:
        """A tensor of a host array; None stays None."""
        return None if array is None else self._torch.from_numpy(array).to(self.device, self._dtype)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:  # noqa: ARG002  # the format says it
        """A tensor full of NaN."""
        return self._torch.full(shape, np.nan, dtype=self._dtype, device=self.device)

    def take(self, value: Any) -> Any:
        """What checking looks at; None stays None."""
        return None if value is None else Downloaded(self._torch, value, self._kind)

    def on_stream(self) -> contextlib.AbstractContextManager[Any]:
        """Inside, by making it torch's current one."""
        return contextlib.nullcontext() if self._stream is None else self._torch.cuda.stream(self._stream)

    def capture(self, run: Callable[[], Any]) -> Callable[[], None]:
        """By torch, whose allocator has to know; results and workspace live as long as the graph does."""
        torch = self._torch
        with self.on_stream():  # left as it was where the capture fails
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                kept = run()

        def replay(kept: Any = kept) -> None:  # noqa: ARG001  # the results are the graph's to write
            with self.on_stream():
                graph.replay()

        return replay


class Worker:
    """A thread of its own for a contestant whose library keeps something for each thread; `set_up` comes before all."""

    def __init__(self, set_up: Callable[[], None]) -> None:
        self._set_up = set_up
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)

    def __call__(self, function: Callable[[], Result]) -> Result:
        """What the function returns there."""

        def work() -> Result:
            self._set_up()
            return function()

        return self._pool.submit(work).result()

    def close(self) -> None:
        """End the thread."""
        self._pool.shutdown()


def here(function: Callable[[], Result]) -> Result:
    """In the calling thread."""
    return function()


class GpuPlace:
    """A library's memory on a GPU and its calls' clocks.

    Parameters
    ----------
    memory : Library
    backend : Backend
    worker : callable, optional
        Where calls run and are captured; by default in the thread that times.
    """

    def __init__(self, memory: Library, backend: Backend, worker: Callable[[Callable[[], Any]], Any] = here) -> None:
        self.device = memory.device
        self.precision = memory.precision
        self.keywords = memory.keywords
        self.take = memory.take
        self._memory = memory
        self._backend = backend
        self._worker = worker

    def put(self, array: Any) -> Any:
        """There, before anything else is queued."""
        value = self._memory.put(array)
        self._backend.wait()
        return value

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """There, before anything else is queued."""
        value = self._memory.empty(shape, dtype)
        self._backend.wait()
        return value

    def call(self, run: Callable[[], Any], set_up: Callable[[], None] = nothing) -> Call:
        """A call whose time is that of a replayed graph."""
        memory, backend = self._memory, self._backend

        def on_stream(function: Callable[[], Result]) -> Result:
            def work() -> Result:
                with memory.on_stream():
                    return function()

            return self._worker(work)  # type: ignore[no-any-return]  # a worker gives back what the function returns

        clock = Replay(backend, lambda: self._worker(lambda: memory.capture(run)), lambda: on_stream(run))
        return Call(
            lambda: on_stream(run),
            backend.wait,
            set_up,
            clock=clock,
            queued=lambda calls: on_stream(lambda: queued(backend, run, calls)),
        )
