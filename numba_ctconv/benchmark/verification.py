"""Runs every problem in small through every algorithm and holds all elements against the reference, bit by bit.

Called by `numba-ctconv verify`: does this installation compute what it should on this machine? Operands are small
integers, whose sums are exact in any order. Results go into arrays full of NaN, so that an element that nobody wrote
is wrong.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np

from ..checks import DTYPES, Algorithm
from ..functional import Gradients, conv_transpose1d, conv_transpose1d_backward
from .checking import GRADIENTS, Arrays, first_mismatch, shapes
from .device import Device, operands_on, to_device, to_host
from .progress import Progress
from .workloads import CASES, Operands, Problem, layer_problems

ALGORITHMS: tuple[str, ...] = get_args(Algorithm)


class Outcome(NamedTuple):
    """One call's verdict; `wrong` is empty where everything is right."""

    name: str
    wrong: str


def problems() -> list[Problem]:
    """Every corner case, and the core layers with few channels and a short input."""
    return [*CASES, *(layer.shrunk() for layer in layer_problems(core=True))]


def verify(
    device: Device,
    progress: Progress,
    *,
    among: Sequence[Problem] | None = None,
    algorithms: Sequence[str] = ALGORITHMS,
) -> Iterator[Outcome]:
    """Check forward and gradients of every problem, algorithm and dtype on a device."""
    for dtype in DTYPES:
        for algorithm in algorithms:
            kind = f"{device}, {algorithm}, {dtype}"
            progress.announce(f"{kind}: the first calls compile")
            for problem in problems() if among is None else among:
                progress.update(f"{kind}: {problem.name}")
                operands = problem.operands(dtype)
                for what, run in (("forward", _forward), ("gradients", _gradients)):
                    wrong = _verdict(run, problem, operands, algorithm, device)
                    yield Outcome(f"{problem.name}, {what}, {kind}", wrong)


def _verdict(run: Any, problem: Problem, operands: Operands, algorithm: str, device: Device) -> str:
    try:
        result = run(problem, operands_on(operands, device), algorithm, device)
    except Exception as error:  # noqa: BLE001  # a kernel that does not compile or run is a finding, not the end
        return f"{type(error).__name__}: {error}"
    mismatch = first_mismatch(problem, operands, result, exact=True)
    return "" if mismatch is None else str(mismatch)


def _forward(problem: Problem, operands: Operands, algorithm: str, device: Device) -> Arrays:
    x, w, b, _ = operands
    out = _poisoned(shapes(problem)["output"], x.dtype, device)
    conv_transpose1d(x, w, b, **problem.forward_parameters, algorithm=algorithm, out=out)
    return {"output": to_host(out)}


def _gradients(problem: Problem, operands: Operands, algorithm: str, device: Device) -> Arrays:
    x, w, _, dy = operands
    out = Gradients(*(_poisoned(shapes(problem)[name], x.dtype, device) for name in GRADIENTS))
    conv_transpose1d_backward(dy, x, w, **problem.backward_parameters, algorithm=algorithm, out=out)
    return {name: to_host(array) for name, array in zip(GRADIENTS, out, strict=True)}


def _poisoned(shape: tuple[int, ...], dtype: Any, device: Device) -> Any:
    return to_device(np.full(shape, np.nan, dtype), device)
