"""The CUDA engine: views of device arrays in, kernels queued on a stream. Called by functional and modules.

It allocates, converts and launches, and does no arithmetic on samples. Nothing here waits for the GPU but the transfers
upload, download and copy.
"""

from importlib.util import find_spec
from typing import Any

import numpy as np
from numba import cuda

from .. import checks
from ..checks import BFLOAT16, DEVICE_DTYPES, PRECISIONS, Algorithm, Precision
from ..geometry import Geometry

if find_spec("numba_cuda") is None:
    raise ImportError("numba-cuda is not installed")
if not cuda.is_available():
    raise ImportError(f"Numba finds no GPU it can use: {' '.join((cuda.cuda_error() or 'no NVVM').split())}")

from . import arrays, fast, launch, producers, queues
from . import fill as fill_kernels
from . import forward as forward_kernels
from . import grad_input as grad_input_kernels
from . import grad_weight as grad_weight_kernels
from .arithmetic import arithmetic_of
from .launches import start as _launch
from .queues import Queue


class CudaEngine:
    """dispatch.Engine on device arrays; "auto" is "gather", whose bits don't depend on the run.

    gather and scatter compute in full float32, also where "tf32" is allowed; "tiled" then rounds to tf32, but for
    depthwise layers, and a GPU older than its instructions gathers instead. "tiled", the fast path, was run on an
    emulator and compiled, but not yet on a GPU: it is taken where it is named.
    """

    algorithms: tuple[Algorithm, ...] = ("auto", "tiled", "gather", "scatter")
    precisions: tuple[Precision, ...] = PRECISIONS
    dtypes: tuple[np.dtype[Any], ...] = DEVICE_DTYPES

    def operands(self, values: dict[str, Any]) -> dict[str, Any]:
        """Views of the arrays of a call, all on one GPU; None stays None."""
        views = {
            # a layer's own are views already
            name: value if value is None or arrays.is_view(value) else self._view(value, name)
            for name, value in values.items()
        }
        if not queues.one_gpu():
            first: tuple[str, int] | None = None
            for name, view in views.items():
                device = None if view is None else producers.device(view)
                if first is None and device is not None:
                    first = (name, device)
                if first is not None and device not in (None, first[1]):
                    checks.mixed_devices(name, device, *first)
        return views

    def _view(self, value: Any, name: str) -> Any:
        """A view of an array that the kernels take."""
        producer = producers.producer_of(value)
        memory = producer.memory(value, name)
        form = arrays.form_of(memory.dtype, memory.shape, memory.strides)
        if not form.taken:
            checks.floating(form, name, self.dtypes)
        if not form.aligned or (form.size and memory.address % form.dtype.itemsize):
            checks.unaligned(name)
        return arrays.view(memory, value, producer, form)

    def described(self, array: Any) -> Any:
        """All that is told of a view but where it lies."""
        return array.form

    def batched(self, array: Any) -> Any:
        """A view with a leading dimension of one."""
        return arrays.batched(array)

    def writeable(self, array: Any) -> bool:
        """Whether the array may be written."""
        return not arrays.memory_of(array).read_only

    def overlapped(self, array: Any, others: dict[str, Any]) -> str | None:
        """The first of `others` that shares memory with the array, or lies in its gaps."""
        return arrays.overlapped(array, others)

    def launch_stream(self, stream: Any, arrays: dict[str, Any]) -> Queue:
        """Where the work of a call is queued: `stream`, or that of the first of `arrays`; it waits for the others'."""
        return producers.queue_of(stream, arrays)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], like: Any, stream: Queue) -> Any:
        """A new value from the library that `like` comes from."""
        return producers.producer_of(like).empty(shape, dtype, stream)

    def forward(
        self,
        input: Any,
        weight: Any,
        bias: Any,
        geometry: Geometry,
        groups: int,
        algorithm: Algorithm,
        precision: Precision,
        stream: Queue,
        kept: dict[Any, Any] | None,
        output: Any,
    ) -> None:
        """Overwrite output (N, C_out, L_out) from input (N, C_in, L_in), weight and bias (C_out) or None."""
        plan = geometry.plan
        added = arrays.nothing(output.dtype) if bias is None else bias
        place = (geometry.crops.left, groups, output)
        if algorithm == "tiled" and queues.has_tensor_cores(stream):
            arithmetic = arithmetic_of(output.dtype, precision)
            fast.forward(input, weight, added, geometry, groups, arithmetic, stream, kept, output)
        elif algorithm == "scatter":
            _launch(fill_kernels.fill, launch.thread_each(output.size), stream, added, output)
            added_to = (input, weight, plan.stride, plan.dilation, *place)
            _launch(forward_kernels.scatter, launch.thread_each(input.size), stream, *added_to)
        else:
            operands = (input, weight, added, plan.stride, plan.dilation, plan.phase_step, plan.inverse, *place)
            _launch(forward_kernels.gather, launch.thread_each(output.size), stream, *operands)

    def grad_input(
        self,
        grad_output: Any,
        weight: Any,
        geometry: Geometry,
        groups: int,
        algorithm: Algorithm,
        precision: Precision,
        stream: Queue,
        kept: dict[Any, Any] | None,
        grad_input: Any,
    ) -> None:
        """Overwrite grad_input (N, C_in, L_in) from grad_output and weight."""
        plan = geometry.plan
        place = (geometry.crops.left, groups, grad_input)
        if algorithm == "tiled" and queues.has_tensor_cores(stream):
            arithmetic = arithmetic_of(grad_input.dtype, precision)
            fast.grad_input(grad_output, weight, geometry, groups, arithmetic, stream, kept, grad_input)
        elif algorithm == "scatter":
            _zero(grad_input, stream)
            added_to = (grad_output, weight, plan.stride, plan.dilation, plan.phase_step, plan.inverse, *place)
            _launch(grad_input_kernels.scatter, launch.thread_each(grad_output.size), stream, *added_to)
        else:
            operands = (grad_output, weight, plan.stride, plan.dilation, *place)
            _launch(grad_input_kernels.gather, launch.thread_each(grad_input.size), stream, *operands)

    def grad_weight(
        self,
        grad_output: Any,
        input: Any,
        geometry: Geometry,
        groups: int,
        algorithm: Algorithm,
        precision: Precision,
        stream: Queue,
        grad_weight: Any,
        grad_bias: Any | None,
    ) -> None:
        """Overwrite grad_weight (C_in, C_out/groups, K), and grad_bias (C_out) or None, from grad_output and input."""
        plan = geometry.plan
        operands = (grad_output, input, plan.stride, plan.dilation, geometry.crops.left, groups, grad_weight)
        if algorithm == "tiled" and queues.has_tensor_cores(stream):
            arithmetic = arithmetic_of(grad_weight.dtype, precision)
            fast.grad_weight(grad_output, input, geometry, groups, arithmetic, stream, grad_weight)
        elif algorithm == "scatter":
            _zero(grad_weight, stream)
            _launch(grad_weight_kernels.scatter, launch.thread_each(input.size), stream, *operands)
        else:
            _launch(grad_weight_kernels.gather, launch.block_each(grad_weight.size), stream, *operands)
        if grad_bias is not None:
            self.grad_bias(grad_output, algorithm, stream, grad_bias)

    def grad_bias(self, grad_output: Any, algorithm: Algorithm, stream: Queue, grad_bias: Any) -> None:
        """Overwrite grad_bias (C_out) from grad_output."""
        if algorithm == "scatter":
            _zero(grad_bias, stream)
            each = launch.thread_each(grad_output.size)
            _launch(grad_weight_kernels.bias_scatter, each, stream, grad_output, grad_bias)
        else:
            each = launch.block_each(grad_bias.size)
            _launch(grad_weight_kernels.bias_gather, each, stream, grad_output, grad_bias)

    def upload(self, host: Any) -> Any:
        """A device array with the contents of a NumPy array, ready for every stream."""
        array = arrays.allocate(host.shape, host.dtype, Queue(queues.current_device(), 0))
        _bits(array).copy_to_device(_bits(np.array(host, order="C")))
        cuda.default_stream().synchronize()
        return array

    def copy(self, value: Any) -> Any:
        """A contiguous device array of Numba's with the contents of any device array, ready for every stream."""
        memory = producers.memory(value, "value")
        queue = producers.queue_of(None, {"value": value})
        new = arrays.allocate(memory.shape, memory.dtype, queue._replace(stream=0))
        with queues.on_device(queue):
            source, target = arrays.view(memory, value), arrays.view(arrays.memory_of(new), new)
            each = launch.thread_each(target.size)
            _launch(fill_kernels.copy, each, queue, _three_dimensional(source), _three_dimensional(target))
            (queues.stream_of(queue.stream) or cuda.default_stream()).synchronize()
        return new

    def download(self, value: Any) -> Any:
        """A NumPy array with the contents of any device array."""
        new = self.copy(value)
        host = _bits(new).copy_to_host()
        return host if host.dtype == new.dtype else host.view(new.dtype)

    def synchronize(self) -> None:
        """Wait for all that is queued on the current GPU."""
        cuda.synchronize()

    def describe(self) -> dict[str, str]:
        """The name, compute capability and driver of the current GPU."""
        return queues.describe_device()


def _zero(array: Any, queue: Queue) -> None:
    """Queue the zeros that a scatter kernel adds to."""
    none = arrays.nothing(array.dtype)
    _launch(fill_kernels.fill, launch.thread_each(array.size), queue, none, _three_dimensional(array))


def _bits(array: Any) -> Any:
    """An array as Numba copies it between host and GPU: bfloat16, which is no buffer of Python's, as integers."""
    return array.view(np.uint16) if array.dtype == BFLOAT16 else array


def _three_dimensional(array: Any) -> Any:
    return array if len(array.shape) == 3 else _three_dimensional(arrays.batched(array))


ENGINE = CudaEngine()  # last, because it says that all of the module is there
