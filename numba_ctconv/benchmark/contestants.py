"""What every contestant of the benchmark is, and what a pass computes, reads and writes.

Ours (this package) and those of peers (torch, onnxruntime) keep to the protocol; measure and report draw on the rest.
"""

from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np

from .checking import GRADIENTS, Arrays, shapes
from .formats import FORMATS
from .timing import Call
from .workloads import Operands, Problem

Pass = Literal["forward", "grad_input", "grad_weight", "gradients"]
PASSES: tuple[Pass, ...] = get_args(Pass)


class Contestant(Protocol):
    """One implementation on one device with so many threads.

    An `exact` one must sum integers without error; a `cold` one finds its weights in memory at every call.
    """

    name: str
    threads: int
    exact: bool
    cold: bool

    def takes(self, problem: Problem, what: Pass, dtype: str) -> bool:
        """Whether it can compute the pass."""

    def prepare(self, problem: Problem, what: Pass, operands: Operands) -> Call:
        """A call that computes the pass from the host arrays `operands`, which are moved to the device first."""

    def arrays(self, what: Pass, result: Any) -> Arrays:
        """What a call returned, as host arrays by their names."""


class Traffic(NamedTuple):
    """The sizes of the arrays that a pass has to read and to write, each once, in elements."""

    read: tuple[int, ...]
    written: tuple[int, ...]

    def bytes(self, dtype: str) -> int:
        """All of them together."""
        return (sum(self.read) + sum(self.written)) * FORMATS[dtype].itemsize


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


def traffic(problem: Problem, what: Pass) -> Traffic:
    """What a pass has to move, whatever it computes with. The bias is too small to count."""
    sizes = {name: int(np.prod(shape)) for name, shape in shapes(problem).items()}
    operands: dict[Pass, tuple[str, ...]] = {
        "forward": ("input", "weight"),
        "grad_input": ("output", "weight"),
        "grad_weight": ("output", "input"),
        "gradients": ("output", "input", "weight"),
    }
    written = (name for name in results(problem, what) if name != "bias")
    return Traffic(tuple(sizes[name] for name in operands[what]), tuple(sizes[name] for name in written))
