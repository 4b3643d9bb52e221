"""Holds a result against reference.py: every element of a small one, a sample with all edges of a large one.

Called by measure before anything is timed, by verification, and by the benchmark's tests. A result is a dict of arrays:
{"output"} of a forward call, any of {"input", "weight", "bias"} of a backward call.

Two comparisons. Operands of small integers have exact sums in every order as long as no partial sum leaves the integers
that the dtype holds without gaps; then the result has to equal the reference. Otherwise an element summed from n terms
may be off by

    |got - expected| <= min(n, 8·√n) · u · Σ|terms|,   u = eps/2 of the dtype.

n·u·Σ|terms| bounds the rounding of n additions and products in any order; its first-order form is enough, as the sample
stays far below n·u = 1. Rounding errors that are independent and of mean zero stay below λ·√n·u·Σ|terms| but for a
probability of 2n·exp(-λ²/2) (Higham and Mary, doi 10.1137/18M1226312), with λ = 8 below 1e-13·n/5. Σ|terms| is the
reference itself, on absolute values. formats adds what is rounded beside the sum: factors to tf32, results to halves.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from .. import reference
from .formats import FORMATS, Format
from .workloads import Operands, Problem

LARGEST_INTEGER = 4  # of the exact operands
SAMPLED_TERMS = 30_000_000  # products that the reference sums for a sample, so that it takes a fraction of a second
EDGE = 8  # samples of time, or taps, at either end
GRADIENTS = ("input", "weight", "bias")

Arrays = dict[str, Any]


class Mismatch(NamedTuple):
    """The first wrong element of a result."""

    array: str
    place: tuple[int, ...]
    got: float
    expected: float
    wrong: int
    compared: int

    def __str__(self) -> str:
        """In words."""
        return (
            f"{self.array}[{', '.join(map(str, self.place))}] is {self.got:.9g}, expected {self.expected:.9g}; "
            f"{self.wrong} of {self.compared} elements compared are wrong"
        )


class WrongShape(NamedTuple):
    """A result whose shape or dtype is not that of the problem."""

    array: str
    got: str
    expected: str

    def __str__(self) -> str:
        """In words."""
        return f"{self.array} is an array of {self.got}, expected {self.expected}"


def shapes(problem: Problem) -> dict[str, tuple[int, ...]]:
    """The shape of every result of a problem."""
    lead = () if problem.batch is None else (problem.batch,)
    return {
        "output": (*lead, problem.out_channels, problem.output_length),
        "input": (*lead, problem.in_channels, problem.input_length),
        "weight": (problem.in_channels, problem.out_channels // problem.groups, problem.kernel_size),
        "bias": (problem.out_channels,),
    }


def terms(problem: Problem, array: str) -> int:
    """The most terms that an element of a result sums."""
    batch = 1 if problem.batch is None else problem.batch
    if array == "output":
        step = problem.stride // math.gcd(problem.stride, problem.dilation)
        return problem.in_channels // problem.groups * -(-problem.kernel_size // step) + problem.bias
    if array == "input":
        return problem.out_channels // problem.groups * problem.kernel_size
    return batch * (problem.input_length if array == "weight" else problem.output_length)


def is_exact(problem: Problem, array: str, dtype: Any) -> bool:
    """Whether sums over the integer operands are exact in every order."""
    largest = LARGEST_INTEGER if array == "bias" else LARGEST_INTEGER**2
    return terms(problem, array) * largest <= int(2 ** (np.finfo(dtype).nmant + 1))


def first_mismatch(
    problem: Problem, operands: Operands, result: Arrays, *, exact: bool, kind: Format | None = None
) -> Mismatch | WrongShape | None:
    """What is wrong with a result, or None: see :class:`Expected`."""
    return Expected(problem, operands, exact=exact, kind=kind).first_mismatch(result)


class Expected:
    """What a problem's results should be; the reference computes it once, however many results are held against it.

    Parameters
    ----------
    problem : Problem
    operands : Operands
        The host arrays that the results are computed from.
    exact : bool
        Whether the operands are the problem's integers: then elements whose sums are exact must be equal.
    kind : Format, optional
        What the results are computed in; by default the operands' own dtype.
    """

    def __init__(self, problem: Problem, operands: Operands, *, exact: bool, kind: Format | None = None) -> None:
        self._problem = problem
        self._operands = operands
        self._exact = exact
        self._kind = FORMATS[operands.weight.dtype.name] if kind is None else kind
        self._known: dict[str, tuple[Any, Any, Any]] = {}

    def first_mismatch(self, result: Arrays, *, loose: bool = False) -> Mismatch | WrongShape | None:
        """What is wrong with a result, or None.

        Parameters
        ----------
        result : dict of str to numpy.ndarray
        loose : bool
            Whether it may be rounded as peers do.
        """
        dtype = self._operands.weight.dtype
        for name, array in result.items():
            expected_shape = shapes(self._problem)[name]
            if array.shape != expected_shape or array.dtype != dtype:
                return WrongShape(name, f"{array.dtype} {array.shape}", f"{dtype} {expected_shape}")
            if name not in self._known:
                self._known[name] = self._sampled(name)
            where, expected, magnitude = self._known[name]
            allowed = self._allowed(name, expected, magnitude, loose=loose)
            got = array[tuple(where.T)].astype(np.float64)
            right = np.abs(got - expected) <= allowed  # false where either is NaN
            if not right.all():
                first = int(np.argmin(right))
                index = tuple(int(i) for i in where[first])
                wrong = int(np.count_nonzero(~right))
                return Mismatch(name, index, float(got[first]), float(expected[first]), wrong, len(where))
        return None

    def _allowed(self, name: str, expected: Any, magnitude: Any, *, loose: bool) -> Any:
        """How far off each element may be; not at all where its sum is exact, and then has no magnitude."""
        if magnitude is None:
            return np.zeros(len(expected))
        summed = tolerance(terms(self._problem, name), self._operands.weight.dtype) * magnitude
        return summed + self._kind.allowed(expected, magnitude, loose=loose)

    def _sampled(self, name: str) -> tuple[Any, Any, Any]:
        """Places in a result, what should stand there, and the sums of the sizes of its terms."""
        problem, operands, dtype = self._problem, self._operands, self._operands.weight.dtype
        shape = shapes(problem)[name]
        where = sample(shape, _sample_size(problem, name))
        if len(where) == 0:
            return where, np.empty(0), None
        rows = where if len(shape) != 2 else np.insert(where, 0, 0, axis=1)  # the reference counts an item 0
        expected = _reference(problem, operands, name, rows)
        if self._exact and is_exact(problem, name, dtype):
            return where, self._kind.rounded(expected), None
        magnitudes = Operands(*(None if a is None else np.abs(a) for a in operands))
        return where, expected, _reference(problem, magnitudes, name, rows)


def tolerance(count: int, dtype: Any) -> float:
    """The largest error of a sum of so many terms, relative to Σ|terms|."""
    return float(min(count + 1, 8 * math.sqrt(count + 1)) * np.finfo(dtype).eps / 2)


def sample(shape: tuple[int, ...], size: int) -> Any:
    """Indices of an array in their order, one a row: all, or both edges of every dimension and about `size` others."""
    total = math.prod(shape)
    if total <= size:
        return np.argwhere(np.ones(shape, np.bool_))
    reaches = [1] * (len(shape) - 1) + [EDGE]
    edges = [
        sorted({*range(min(reach, n)), *range(max(n - reach, 0), n)}) for reach, n in zip(reaches, shape, strict=True)
    ]
    corners = np.stack([axis.ravel() for axis in np.meshgrid(*edges, indexing="ij")], axis=1)
    rng = np.random.default_rng(total)
    others = np.stack([rng.integers(0, n, size) for n in shape], axis=1)
    return np.unique(np.concatenate([corners, others]), axis=0)


def _sample_size(problem: Problem, array: str) -> int:
    """Few elements where each has many terms; the reference looks at K·C_in/groups products for an output."""
    visited = terms(problem, array)
    if array == "output":
        visited = problem.in_channels // problem.groups * problem.kernel_size
    return min(max(SAMPLED_TERMS // max(visited, 1), 16), 50_000)


def _reference(problem: Problem, operands: Operands, array: str, where: Any) -> Any:
    if array == "output":
        return reference.conv_transpose1d(
            operands.input, operands.weight, operands.bias, **problem.forward_parameters, at=where
        )
    parameters = {key: value for key, value in problem.parameters.items() if key != "output_padding"}
    nowhere = [np.empty((0, dimensions), np.int64) for dimensions in (3, 3, 1)]
    asked: Any = tuple(where if name == array else none for name, none in zip(GRADIENTS, nowhere, strict=True))
    gradients = reference.conv_transpose1d_backward(
        operands.grad_output, operands.input, operands.weight, **parameters, at=asked
    )
    return gradients[GRADIENTS.index(array)]
