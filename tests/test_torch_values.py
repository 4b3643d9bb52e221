"""Our forward and gradients against values recorded from torch, bit by bit; torch is not needed to run this.

record_torch.py made the archive: operands and results are small integers, exact in float32 and in any order of
summation.
"""

import json
import pathlib
import zlib
from typing import get_args

import numpy as np
import pytest

from numba_ctconv import conv_transpose1d, conv_transpose1d_backward, reference
from numba_ctconv.benchmark.workloads import Problem
from numba_ctconv.checks import Algorithm

with np.load(pathlib.Path(__file__).parent / "data" / "torch_values.npz") as archive:
    RECORDED = dict(archive)
ABOUT = json.loads(str(RECORDED["about"]))
PROBLEMS = [Problem(**fields) for fields in ABOUT["problems"]]

every_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=[problem.name for problem in PROBLEMS])


def recorded(problem, *names):
    """Recorded results; None for the gradient of a bias that the problem does not have."""
    return [RECORDED.get(f"{problem.name}/{name}") for name in names]


def assert_same_values(ours, torchs, dtype):
    """Of that dtype, and equal element by element to recorded integers."""
    assert ours.dtype == dtype
    assert ours.shape == torchs.shape
    np.testing.assert_array_equal(ours, torchs.astype(dtype), strict=True)


def test_the_archive_is_whole_and_small():
    assert ABOUT["torch"].startswith("2.13")
    assert len(PROBLEMS) >= 70
    assert len({problem.name for problem in PROBLEMS}) == len(PROBLEMS)
    for problem in PROBLEMS:
        results = [a for a in recorded(problem, "output", "grad_input", "grad_weight", "grad_bias") if a is not None]
        assert len(results) == 3 + problem.bias
        assert all(np.abs(array.astype(float)).max(initial=0) < 2**24 for array in results)  # exact in float32


@every_problem
def test_operands_are_those_that_torch_was_given(problem):
    sums = [0 if a is None else zlib.crc32(a.astype("<f8").tobytes()) for a in problem.operands(np.float64)]
    assert sums == RECORDED[f"{problem.name}/operands"].tolist(), "operands have changed: run record_torch.py again"


@every_problem
def test_reference_computes_what_torch_does(problem):
    x, w, b, dy = problem.operands(np.float64)
    output, *gradients = recorded(problem, "output", "grad_input", "grad_weight", "grad_bias")
    assert_same_values(reference.conv_transpose1d(x, w, b, **problem.forward_parameters), output, np.float64)
    parameters = {name: value for name, value in problem.parameters.items() if name != "output_padding"}
    for ours, torchs in zip(reference.conv_transpose1d_backward(dy, x, w, **parameters), gradients, strict=True):
        if torchs is not None:
            assert_same_values(ours, torchs, np.float64)


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_problem
def test_forward_computes_what_torch_does(problem, dtype, algorithm):
    x, w, b, _ = problem.operands(dtype)
    (output,) = recorded(problem, "output")
    assert_same_values(conv_transpose1d(x, w, b, **problem.forward_parameters, algorithm=algorithm), output, dtype)


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_problem
def test_gradients_are_those_of_torch(problem, dtype, algorithm):
    x, w, _, dy = problem.operands(dtype)
    gradients = conv_transpose1d_backward(dy, x, w, **problem.backward_parameters, algorithm=algorithm)
    torchs = recorded(problem, "grad_input", "grad_weight", "grad_bias")
    for ours, theirs in zip(gradients, torchs, strict=True):
        if theirs is not None:
            assert_same_values(ours, theirs, dtype)
