"""Runs every problem in small through every algorithm and holds all elements against the reference, bit by bit.

Called by `numba-ctconv verify`: does this installation compute what it should on this machine? Operands are small
integers, whose sums are exact in any order. Results go into arrays full of NaN, so that an element that nobody wrote
is wrong. A GPU computes in halves and tf32 as well, which hold those integers too.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

from ..checks import Algorithm
from ..functional import Gradients, conv_transpose1d, conv_transpose1d_backward
from .checking import GRADIENTS, Arrays, first_mismatch, shapes
from .device import Device, Memory, host_has, memory_of, operands_in
from .formats import FORMATS, TF32, Format
from .progress import Progress
from .workloads import CASES, Operands, Problem, layer_problems

ALGORITHMS: tuple[str, ...] = get_args(Algorithm)
SUMMED_ONCE = tuple(name for name in ALGORITHMS if name != "scatter")  # what takes halves
SINGLE, DOUBLE = FORMATS["float32"], FORMATS["float64"]
HALVES = (FORMATS["float16"], FORMATS["bfloat16"])
KINDS: dict[Device, tuple[tuple[Format, tuple[str, ...]], ...]] = {
    "cpu": ((SINGLE, ALGORITHMS), (DOUBLE, ALGORITHMS)),
    # only "tiled" rounds to tf32; "auto" may choose it
    "cuda": (
        (SINGLE, ALGORITHMS),
        (DOUBLE, ALGORITHMS),
        (TF32, ("auto", "tiled")),
        *((half, SUMMED_ONCE) for half in HALVES),
    ),
}
# Small ones for tools that slow everything down: a family of phases more than one, groups, dilation, an odd stride, and
# sums that "tiled" splits on a GPU.
QUICK = (
    "stride_2_kernel_4",
    "groups",
    "stride_and_dilation_coprime",
    "depthwise_multiplier",
    "many_channels_few_samples",
)
QUICK_ALGORITHMS = tuple(name for name in ALGORITHMS if name != "auto")  # which is one of them


class Outcome(NamedTuple):
    """One call's verdict; `wrong` is empty where everything is right."""

    name: str
    wrong: str


def problems() -> list[Problem]:
    """Every corner case, and the core layers with few channels and a short input."""
    return [*CASES, *(layer.shrunk() for layer in layer_problems(core=True))]


def quick_problems() -> list[Problem]:
    """A few of the corner cases."""
    return [problem for problem in CASES if problem.name in QUICK]


def verify(
    device: Device,
    progress: Progress,
    *,
    among: Sequence[Problem] | None = None,
    algorithms: Sequence[str] = ALGORITHMS,
) -> Iterator[Outcome]:
    """Check forward and gradients of every problem, algorithm and number format on a device."""
    for kind, offered in KINDS[device]:
        if not host_has(kind):
            progress.announce(f"{device}, {kind.name}: not checked, NumPy has it only where ml_dtypes is installed")
            continue
        memory = memory_of(device, kind)
        for algorithm in (name for name in algorithms if name in offered):
            title = f"{device}, {algorithm}, {kind.name}{', tf32' * (kind is TF32)}"
            progress.announce(f"{title}: the first calls compile")
            for problem in problems() if among is None else among:
                progress.update(f"{title}: {problem.name}")
                operands = problem.operands(kind.host)
                for what, run in (("forward", _forward), ("gradients", _gradients)):
                    wrong = _verdict(run, problem, operands, algorithm, memory, kind)
                    yield Outcome(f"{problem.name}, {what}, {title}", wrong)


def _verdict(run: Any, problem: Problem, operands: Operands, algorithm: str, memory: Memory, kind: Format) -> str:
    chosen = {"algorithm": algorithm, "precision": memory.precision}
    try:
        result = run(problem, operands_in(memory, operands), chosen, memory, operands.weight.dtype)
    except Exception as error:  # noqa: BLE001  # a kernel that does not compile or run is a finding, not the end
        return f"{type(error).__name__}: {error}"
    mismatch = first_mismatch(problem, operands, result, exact=True, kind=kind)
    return "" if mismatch is None else str(mismatch)


def _forward(problem: Problem, operands: Operands, chosen: Any, memory: Memory, dtype: Any) -> Arrays:
    x, w, b, _ = operands
    out = memory.empty(shapes(problem)["output"], dtype)
    conv_transpose1d(x, w, b, **problem.forward_parameters, **chosen, out=out)
    return {"output": memory.take(out)}


def _gradients(problem: Problem, operands: Operands, chosen: Any, memory: Memory, dtype: Any) -> Arrays:
    x, w, _, dy = operands
    out = Gradients(*(memory.empty(shapes(problem)[name], dtype) for name in GRADIENTS))
    conv_transpose1d_backward(dy, x, w, **problem.backward_parameters, **chosen, out=out)
    return {name: memory.take(array) for name, array in zip(GRADIENTS, out, strict=True)}
