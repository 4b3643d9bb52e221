"""What the number formats of a GPU cost in accuracy: their results beside those of float64, on random data.

Called by `numba-ctconv accuracy`. The data are normal deviates in float32, which halves round before they compute, and
errors are told relative to the root mean square of a result. Where there is no GPU, the kernels are emulated: factors
and results are rounded as a GPU rounds them, and float32 sums are added up in the same blocks. How tensor cores add the
terms of one instruction is not documented; what that makes is of the size of float32's own errors.
"""

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..functional import conv_transpose1d, conv_transpose1d_backward
from .checking import Arrays, terms
from .device import Host, Memory, host_has, memory_of, operands_in
from .formats import FORMATS, TF32
from .progress import Progress
from .report import Column, Record
from .selection import matching
from .workloads import Operands, Problem, layer_problems

ROWS = ("gpt_sovits_v2/up3", "oobleck_sao/up4", "hifigan_v1/up0", "oobleck_sao/up0")  # from few terms to many
KINDS = {"float32": FORMATS["float32"], "tf32": TF32} | {name: FORMATS[name] for name in ("float16", "bfloat16")}
CUT_ROWS, CUT_LENGTH = 64, 64  # output channels times phases, and input samples: an emulator's seconds
SAMPLED = 4096  # elements of a result, which a simulated GPU hands over one by one


class Error(NamedTuple):
    """How far a result is off, relative to its root mean square."""

    rms: float
    largest: float

    def __str__(self) -> str:
        """In a cell of a table."""
        return f"{self.rms:.1e} ({self.largest:.1e})"


def _shown(name: str) -> Callable[[Record], str]:
    return lambda record: str(record[name])


WIDTHS = {"row": 18, "result": 6, "terms": 5} | dict.fromkeys(KINDS, 17)
COLUMNS = [Column(name, width, _shown(name), left=name in ("row", "result")) for name, width in WIDTHS.items()]
MEANING = (
    "root mean square of the errors (and the largest) over that of the result in float64; of normal deviates, which "
    f"halves round first; algorithm tiled; rows cut to an item of {CUT_LENGTH} samples and to {CUT_ROWS} output "
    "channels times phases"
)
NOT_MEASURED = "-"  # NumPy has no bfloat16 where ml_dtypes is not installed


def chosen(patterns: Sequence[str]) -> list[Problem]:
    """Rows that patterns match, ROWS by default, cut to what an emulator can compute."""
    problems = {problem.name: problem for problem in layer_problems()}
    wanted = matching(patterns or ROWS, list(problems), "rows")
    return [cut(problems[name]) for name in (problems if patterns else ROWS) if name in wanted]


def cut(problem: Problem) -> Problem:
    """A row with few output channels and samples; an output sums as many terms as ever."""
    short = problem.with_length(1, CUT_LENGTH)
    channels = min(problem.out_channels, max(CUT_ROWS // problem.stride, 1))
    return short if problem.groups > 1 else dataclasses.replace(short, out_channels=channels)


def measure(problems: Sequence[Problem], progress: Progress) -> Iterator[Record]:
    """A record for every result of a problem."""
    for problem in problems:
        operands = problem.operands(exact=False)
        wide = Operands(*(None if array is None else array.astype(np.float64) for array in operands))
        exact = results(problem, wide, Host(), "gather")
        found = {}
        for name, kind in KINDS.items():
            if host_has(kind):
                progress.update(f"{problem.name}: {name}")
                found[name] = results(problem, operands, memory_of("cuda", kind), "tiled")
        for result, expected in exact.items():
            errors = {name: error(arrays[result], expected) for name, arrays in found.items()}
            all_kinds = dict.fromkeys(KINDS, NOT_MEASURED) | errors
            yield {"row": problem.name, "result": result, "terms": terms(problem, result), **all_kinds}


def results(problem: Problem, operands: Operands, memory: Memory, algorithm: str) -> Arrays:
    """Elements of all that is summed from products."""
    x, w, b, dy = operands_in(memory, operands)
    how: dict[str, Any] = {"algorithm": algorithm, "precision": memory.precision}
    output = conv_transpose1d(x, w, b, **problem.forward_parameters, **how)
    gradients = conv_transpose1d_backward(dy, x, w, **problem.backward_parameters, **how, needs=("input", "weight"))
    named = {"output": output, "input": gradients.input, "weight": gradients.weight}
    # an odd step, which meets all phases and taps
    return {name: memory.take(array.reshape(-1)[:: array.size // SAMPLED | 1]) for name, array in named.items()}


def error(got: Any, expected: Any) -> Error:
    """That of a result beside what it should be."""
    off = np.abs(got - expected) / np.sqrt(np.mean(expected**2))
    return Error(float(np.sqrt(np.mean(off**2))), float(off.max()))


def emulate(patterns: Sequence[str]) -> int:
    """Run the command where Numba simulates CUDA, which it has to know before it starts; the exit status."""
    command = [sys.executable, "-m", "numba_ctconv", "accuracy", *patterns]
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    return subprocess.run(command, check=False, env=environment).returncode  # noqa: S603  # our own program
