"""The check that stands before every timing: it lets right results pass, and no wrong element, shape or dtype."""

import numpy as np
import pytest

from numba_ctconv import conv_transpose1d, conv_transpose1d_backward
from numba_ctconv.benchmark.checking import first_mismatch, is_exact, sample, terms, tolerance
from numba_ctconv.benchmark.workloads import CASES, Problem, layer_problems

LARGE = Problem("large", 3, 40, 30, 900, 16, stride=8, padding=4)
NAMES = ("output", "input", "weight", "bias")


def computed(problem, operands):
    x, w, b, dy = operands
    gradients = conv_transpose1d_backward(dy, x, w, **problem.backward_parameters)
    return {"output": conv_transpose1d(x, w, b, **problem.forward_parameters), **gradients._asdict()}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("problem", [LARGE, *CASES[:12]], ids=lambda problem: problem.name)
def test_right_results_pass(problem, exact, dtype):
    operands = problem.operands(dtype, exact=exact)
    assert first_mismatch(problem, operands, computed(problem, operands), exact=exact) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("edge", [0, -1])
def test_one_wrong_element_at_an_edge_of_a_large_result_is_found(name, edge):
    operands = LARGE.operands()
    result = computed(LARGE, operands)
    array = result[name]
    place = (edge,) * array.ndim
    array[place] += 1
    mismatch = first_mismatch(LARGE, operands, result, exact=True)
    assert mismatch.array == name
    assert mismatch.place == tuple(edge % n for n in array.shape)
    assert mismatch.wrong == 1
    assert mismatch.got == mismatch.expected + 1
    assert f"{name}[" in str(mismatch)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_term_is_more_than_rounding(name):
    """Without its last tap, or its last item, a result of normal deviates does not pass as rounded."""
    operands = LARGE.operands(exact=False)
    weight = operands.weight.copy()
    weight[:, :, -1] = 0
    grad_output = operands.grad_output.copy()
    grad_output[-1] = 0
    gradients = name in ("weight", "bias")
    spoilt = operands._replace(grad_output=grad_output) if gradients else operands._replace(weight=weight)
    result = computed(LARGE, spoilt)
    assert first_mismatch(LARGE, operands, {name: result[name]}, exact=False) is not None


def test_nan_is_wrong():
    problem = CASES[0]
    operands = problem.operands()
    result = computed(problem, operands)
    result["output"][0, 0, 0] = np.nan
    for exact in (True, False):
        assert first_mismatch(problem, operands, result, exact=exact).place == (0, 0, 0)


def test_shape_and_dtype_are_part_of_the_result():
    operands = LARGE.operands()
    output = computed(LARGE, operands)["output"]
    assert "expected float32 (3, 30, 7200)" in str(
        first_mismatch(LARGE, operands, {"output": output[..., :-1]}, exact=True)
    )
    assert "float64" in str(first_mismatch(LARGE, operands, {"output": output.astype(np.float64)}, exact=True))


def test_rounding_of_a_few_units_passes_and_more_does_not():
    problem = Problem("one_product", 1, 1, 1, 1, 1, bias=False)
    operands = problem.operands(exact=False)
    product = operands.input * operands.weight
    allowed = tolerance(terms(problem, "output"), np.float32)
    for factor, right in ((1 + 0.5 * allowed, True), (1 + 4 * allowed, False)):
        result = {"output": (product * factor).astype(np.float32)}
        assert (first_mismatch(problem, operands, result, exact=False) is None) == right


def test_terms_are_what_an_element_sums():
    assert terms(LARGE, "output") == 40 * 2 + 1
    assert terms(LARGE, "input") == 30 * 16
    assert terms(LARGE, "weight") == 3 * 900
    assert terms(LARGE, "bias") == 3 * 7200


def test_exact_where_no_sum_leaves_the_integers_of_the_dtype():
    long = Problem("long", 1, 1, 1, 2**20 + 1, 1)
    assert is_exact(long, "output", np.float32)
    assert not is_exact(long, "weight", np.float32)
    assert is_exact(long, "weight", np.float64)
    for layer in layer_problems(core=True):
        assert is_exact(layer, "output", np.float32)


@pytest.mark.parametrize("shape", [(3, 30, 7200), (1, 1, 100_000), (5000,), (2, 7200)])
def test_a_sample_holds_both_edges_of_every_dimension(shape):
    where = sample(shape, 100)
    assert len(np.unique(where, axis=0)) == len(where) < 300
    assert np.all(where >= 0)
    assert np.all(where < shape)
    present = {tuple(index) for index in where}
    for corner in np.ndindex((2,) * len(shape)):
        assert tuple(c * (n - 1) for c, n in zip(corner, shape, strict=True)) in present


def test_a_sample_of_a_small_array_is_all_of_it():
    assert len(sample((2, 3, 4), 24)) == 24
    assert sample((2, 0, 4), 24).shape == (0, 3)
