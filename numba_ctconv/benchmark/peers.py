"""The contestants of the benchmark: this package's algorithms, and torch where it is installed.

Each prepares a call on a problem's operands, to be timed by timing, and turns what the call returns into host arrays,
to be held against the reference by checking. torch is imported here when the benchmark runs, never before.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, get_args

from .. import functional
from .checking import GRADIENTS, Arrays
from .device import Device, operands_on, synchronizer, to_host
from .timing import Call
from .workloads import Operands, Problem

Pass = Literal["forward", "grad_input", "grad_weight", "gradients"]
PASSES: tuple[Pass, ...] = get_args(Pass)


class Contestant(Protocol):
    """One implementation on one device; an `exact` one must sum integers without error."""

    name: str
    exact: bool

    def prepare(self, problem: Problem, what: Pass, operands: Operands) -> Call:
        """A call that computes the pass from the host arrays `operands`, which are moved to the device first."""

    def arrays(self, what: Pass, result: Any) -> Arrays:
        """What a call returned, as host arrays by their names."""


def needed(problem: Problem, what: Pass) -> tuple[Any, ...]:
    """The names of the gradients of a pass; the bias' belongs to "gradients" where the layer has one."""
    alone = {"grad_input": ("input",), "grad_weight": ("weight",)}
    return alone.get(what, GRADIENTS if problem.bias else ("input", "weight"))


def results(problem: Problem, what: Pass) -> tuple[str, ...]:
    """The names of the arrays that a pass computes."""
    return ("output",) if what == "forward" else needed(problem, what)


def flops(problem: Problem, what: Pass) -> int:
    """Floating-point operations of a pass; the additions of the bias are not counted."""
    return problem.flops * (2 if what == "gradients" else 1)


class Ours:
    """An algorithm of this package."""

    exact = True

    def __init__(self, algorithm: str, device: Device) -> None:
        self.name = algorithm
        self._device: Device = device

    def prepare(self, problem: Problem, what: Pass, operands: Operands) -> Call:
        """A call of the public function, which allocates its results."""
        x, w, b, dy = operands_on(operands, self._device)
        if what == "forward":
            parameters = problem.forward_parameters | {"algorithm": self.name}
            return self._call(lambda: functional.conv_transpose1d(x, w, b, **parameters))
        parameters = problem.backward_parameters | {"algorithm": self.name, "needs": needed(problem, what)}
        return self._call(lambda: functional.conv_transpose1d_backward(dy, x, w, **parameters))

    def arrays(self, what: Pass, result: Any) -> Arrays:
        """The output, or the gradients that were needed."""
        named = {"output": result} if what == "forward" else result._asdict()
        return {name: to_host(array) for name, array in named.items() if array is not None}

    def _call(self, run: Callable[[], Any]) -> Call:
        return Call(run, synchronizer(self._device))


class Torch:
    """torch's operators, with the crops that they can't express done as torch's users do: full length, then a slice."""

    name = "torch"
    exact = False

    def __init__(self, torch: Any, device: Device) -> None:
        self._torch = torch
        self._device = device

    def prepare(self, problem: Problem, what: Pass, operands: Operands) -> Call:
        """A call of conv_transpose1d or of the operator that autograd runs for its gradients."""
        torch = self._torch
        x, w, b, dy = (None if a is None else torch.from_numpy(a).to(self._device) for a in operands)
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
        return {name: tensor.cpu().numpy() for name, tensor in named.items() if tensor is not None}

    def _call(self, run: Callable[[], Any]) -> Call:
        return Call(run, _nothing if self._device == "cpu" else self._torch.cuda.synchronize)


def torch_installed() -> bool:
    """Whether torch can be found, without importing it."""
    try:
        return importlib.util.find_spec("torch") is not None
    except (ImportError, ValueError):  # hidden from this process
        return False


@contextlib.contextmanager
def torch_contestant(device: Device, threads: int) -> Iterator[Torch | None]:
    """Make torch a contestant, with so many threads, and in full float32 precision on a GPU; put its settings back.

    Yields None where torch is not installed, or not for that device.
    """
    if not torch_installed():
        yield None
        return
    torch = importlib.import_module("torch")
    if device == "cuda" and not torch.cuda.is_available():
        yield None
        return
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32
    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield Torch(torch, device)
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def _nothing() -> None:
    pass
