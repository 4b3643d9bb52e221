"""The contestants that are not ours: torch and onnxruntime, where they are installed.

Each computes what its users would make it compute, with as many threads as ours. They are imported here when the
benchmark runs, never before.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

from .checking import GRADIENTS, Arrays
from .contestants import Contestant, Pass, needed
from .timing import Call
from .workloads import Operands, Problem

PEERS = ("torch", "onnxruntime")
REQUIRED = {"torch": ("torch",), "onnxruntime": ("onnxruntime", "onnx")}  # onnx writes the model
OPSET, IR_VERSION = 17, 8  # old enough for every onnxruntime of today


class TensorPlace(Protocol):
    """What torch's contestant asks of the place that its tensors are in."""

    def put(self, array: Any) -> Any:
        """A tensor of a host array; None stays None."""

    def take(self, value: Any) -> Any:
        """A tensor as checking looks at it; None stays None."""

    def call(self, run: Callable[[], Any], set_up: Callable[[], None]) -> Call:
        """The call to time."""


class HostTensors:
    """torch's tensors in host memory, which share it with NumPy's arrays."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def put(self, array: Any) -> Any:
        """A view."""
        return None if array is None else self._torch.from_numpy(array)

    def take(self, value: Any) -> Any:
        """A view."""
        return None if value is None else value.numpy()

    def call(self, run: Callable[[], Any], set_up: Callable[[], None]) -> Call:
        """On the host's clock."""
        return Call(run, set_up=set_up)


class Torch:
    """torch's operators, with the crops that they can't express done as torch's users do: full length, then a slice."""

    exact = False
    cold = False

    def __init__(self, torch: Any, place: TensorPlace, threads: int, name: str = "torch") -> None:
        self.name = name
        self.threads = threads
        self._torch = torch
        self._place = place

    def takes(self, problem: Problem, what: Pass, dtype: str) -> bool:  # noqa: ARG002  # the protocol's
        """Every pass of every row."""
        return True

    def prepare(self, problem: Problem, what: Pass, operands: Operands) -> Call:
        """A call of conv_transpose1d or of the operator that autograd runs for its gradients."""
        torch = self._torch
        x, w, b, dy = (self._place.put(a) for a in operands)
        sliced = isinstance(problem.padding, tuple)
        left = problem.padding[0] if isinstance(problem.padding, tuple) else 0
        padding = 0 if isinstance(problem.padding, tuple) else problem.padding
        full = (problem.input_length - 1) * problem.stride + problem.dilation * (problem.kernel_size - 1) + 1
        end = left + problem.output_length
        output_padding = 0 if sliced else problem.output_length - full + 2 * padding
        if what == "forward":
            integers = (problem.stride, padding, output_padding, problem.groups, problem.dilation)

            def whole() -> Any:
                return torch.nn.functional.conv_transpose1d(x, w, b, *integers)

            return self._call((lambda: whole()[..., left:end]) if sliced else whole)
        names = needed(problem, what)
        mask = [name in names for name in GRADIENTS]
        layer = ([problem.stride], [padding], [problem.dilation], True, [output_padding], problem.groups, mask)
        bias_sizes = [problem.out_channels] if problem.bias else None

        def gradients() -> Any:
            whole = torch.nn.functional.pad(dy, (left, full - end)) if sliced else dy
            return torch.ops.aten.convolution_backward(whole, x, w, bias_sizes, *layer)

        return self._call(gradients)

    def arrays(self, what: Pass, result: Any) -> Arrays:
        """The output, or the gradients that were asked for."""
        named = {"output": result} if what == "forward" else dict(zip(GRADIENTS, result, strict=True))
        return {name: self._place.take(tensor) for name, tensor in named.items() if tensor is not None}

    def _call(self, run: Any) -> Call:
        return self._place.call(run, lambda: self._torch.set_num_threads(self.threads))


class Onnxruntime:
    """onnxruntime's operator on the CPU, in a model of that one node, whose weights are constants.

    Input and output are bound once, and the memory of the output is used again, which spares it the copies of `run`.
    """

    name = "onnxruntime"
    exact = False
    cold = False

    def __init__(self, onnxruntime: Any, onnx: Any, threads: int) -> None:
        self.threads = threads
        self._onnxruntime = onnxruntime
        self._onnx = onnx

    def takes(self, problem: Problem, what: Pass, dtype: str) -> bool:
        """Forward in float32; it has no operator for float64, and its pads are not negative."""
        crops = problem.padding if isinstance(problem.padding, tuple) else (problem.padding,)
        batched = problem.batch is not None and problem.output_size is None
        return what == "forward" and dtype == "float32" and batched and min(crops) >= 0

    def prepare(self, problem: Problem, what: Pass, operands: Operands) -> Call:  # noqa: ARG002  # the protocol's
        """A run of a session of its own."""
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        model = self._model(problem, operands)
        session = self._onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        binding.bind_cpu_input("x", operands.input)
        binding.bind_output("y", "cpu")

        def run() -> Any:
            session.run_with_iobinding(binding)
            return binding

        return Call(run)

    def arrays(self, what: Pass, result: Any) -> Arrays:  # noqa: ARG002  # the protocol's
        """The output."""
        return {"output": result.copy_outputs_to_cpu()[0]}

    def _model(self, problem: Problem, operands: Operands) -> bytes:
        helper, kind = self._onnx.helper, self._onnx.TensorProto.FLOAT
        pads = problem.padding if isinstance(problem.padding, tuple) else (problem.padding, problem.padding)
        constants = {"w": operands.weight} | ({} if operands.bias is None else {"b": operands.bias})
        node = helper.make_node(
            "ConvTranspose",
            ["x", *constants],
            ["y"],
            kernel_shape=[problem.kernel_size],
            strides=[problem.stride],
            pads=list(pads),
            output_padding=[problem.output_padding],
            group=problem.groups,
            dilations=[problem.dilation],
        )
        x = helper.make_tensor_value_info("x", kind, operands.input.shape)
        y = helper.make_tensor_value_info("y", kind, (problem.batch, problem.out_channels, problem.output_length))
        weights = [self._onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
        graph = helper.make_graph([node], "layer", [x], [y], weights)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        return bytes(model.SerializeToString())


def installed(peer: str) -> bool:
    """Whether all that a peer needs can be found, without importing it."""
    try:
        return all(importlib.util.find_spec(name) is not None for name in REQUIRED[peer])
    except (ImportError, ValueError):  # hidden from this process
        return False


@contextlib.contextmanager
def contestants(
    names: Sequence[str],
    place: Literal["cpu"],  # noqa: ARG001  # on_gpu makes those of a GPU
    threads: Sequence[int],
) -> Iterator[list[Contestant]]:
    """Those of the peers that are there, on the CPU, once for each number of threads."""
    found: list[Contestant] = []
    with contextlib.ExitStack() as stack:
        if "torch" in names and installed("torch"):
            torch = importlib.import_module("torch")
            stack.enter_context(kept_settings(torch))
            found += [Torch(torch, HostTensors(torch), count) for count in threads]
        if "onnxruntime" in names and installed("onnxruntime"):
            onnxruntime, onnx = importlib.import_module("onnxruntime"), importlib.import_module("onnx")
            found += [Onnxruntime(onnxruntime, onnx, count) for count in threads]
        yield found


@contextlib.contextmanager
def kept_settings(torch: Any, *, tf32: bool = False) -> Iterator[None]:
    """Convolutions and products of torch's on a GPU in full float32 precision or tf32; all put back afterwards."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.allow_tf32, cudnn.benchmark, torch.get_float32_matmul_precision()
    cudnn.allow_tf32 = tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:3]
        torch.set_float32_matmul_precision(before[3])
