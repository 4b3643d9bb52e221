"""Forward and gradients on the CPU against the definition, bit by bit, over the whole parameter space."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import inner, stuffed_convolution
from strategies import LAYOUTS, OUT_LAYOUTS, problems

import numba_ctconv as nc
from numba_ctconv import reference
from numba_ctconv.benchmark.workloads import CASES, Problem, layer_problems

ALGORITHMS = ("auto", "tiled", "gather", "scatter")
PROBLEMS = [*CASES, *(problem.shrunk() for problem in layer_problems())]

named = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
algorithms = pytest.mark.parametrize("algorithm", ALGORITHMS)
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def definition(problem, operands):
    """Output and gradients of reference.py."""
    x, w, b, dy = operands
    keywords = {k: v for k, v in problem.parameters.items() if k != "output_padding"}
    return (
        reference.conv_transpose1d(x, w, b, **problem.forward_parameters),
        *reference.conv_transpose1d_backward(dy, x, w, **keywords),
    )


def computed(problem, operands, algorithm):
    """Output and gradients of the package."""
    x, w, b, dy = operands
    return (
        nc.conv_transpose1d(x, w, b, **problem.forward_parameters, algorithm=algorithm),
        *nc.conv_transpose1d_backward(dy, x, w, **problem.backward_parameters, algorithm=algorithm),
    )


def assert_same_bits(results, expected, dtype):
    for name, result, exact in zip(("output", "input", "weight", "bias"), results, expected, strict=True):
        assert result.dtype == dtype, name
        np.testing.assert_array_equal(result, exact.astype(dtype), strict=True, err_msg=name)


@named
@algorithms
@dtypes
def test_named_problems_equal_the_definition(problem, algorithm, dtype):
    operands = problem.operands(dtype)
    assert_same_bits(computed(problem, operands, algorithm), definition(problem, operands), dtype)


@pytest.mark.parametrize("problem", CASES, ids=lambda problem: problem.name)
def test_the_definition_equals_zero_stuffing(problem):
    if problem.stride > 1000:
        problem = Problem("stride_beyond_output", 1, 2, 2, 1, 3, stride=997)
    x, w, b, _ = problem.operands(np.float64)
    batched = x if x.ndim == 3 else x[None]
    expected = stuffed_convolution(batched, w, b, **problem.forward_parameters)
    output = reference.conv_transpose1d(x, w, b, **problem.forward_parameters)
    np.testing.assert_array_equal(output, expected if x.ndim == 3 else expected[0], strict=True)


@pytest.mark.parametrize("problem", CASES[:8], ids=lambda problem: problem.name)
def test_the_definition_is_what_its_loops_say(problem, monkeypatch):
    """Compiled and interpreted, reference.py gives the same bits."""
    operands = problem.operands(np.float64, exact=False)
    compiled = definition(problem, operands)
    for name in ("_output", "_grad_input", "_grad_weight", "_grad_bias"):
        monkeypatch.setattr(reference, name, getattr(reference, name).py_func)
    for one, other in zip(compiled, definition(problem, operands), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-13)


@settings(deadline=None, max_examples=300)
@given(problems(), st.sampled_from(ALGORITHMS), st.sampled_from([np.float32, np.float64]))
def test_any_problem_equals_definition_and_zero_stuffing(problem, algorithm, dtype):
    operands = problem.operands(dtype)
    expected = definition(problem, operands)
    assert_same_bits(computed(problem, operands, algorithm), expected, dtype)
    x, w, b, _ = operands
    batched = x if x.ndim == 3 else x[None]
    stuffed = stuffed_convolution(batched, w, b, **problem.forward_parameters)
    np.testing.assert_array_equal(expected[0], stuffed if x.ndim == 3 else stuffed[0], strict=True)


@settings(deadline=None, max_examples=200)
@given(
    problems(),
    st.sampled_from(ALGORITHMS),
    *[st.sampled_from(sorted(LAYOUTS))] * 4,
    st.sampled_from(sorted(OUT_LAYOUTS)),
)
def test_any_layout_gives_the_bits_of_contiguous_arrays(problem, algorithm, lx, lw, lb, ldy, lout):
    operands = problem.operands(np.float32)
    expected = definition(problem, operands)
    x, w, b, dy = (
        None if a is None else LAYOUTS[layout](a) for a, layout in zip(operands, (lx, lw, lb, ldy), strict=True)
    )
    outs = [OUT_LAYOUTS[lout](np.full(a.shape, np.nan, np.float32)) for a in expected]
    y = nc.conv_transpose1d(x, w, b, **problem.forward_parameters, algorithm=algorithm, out=outs[0])
    gradients = nc.conv_transpose1d_backward(
        dy, x, w, **problem.backward_parameters, algorithm=algorithm, out=nc.Gradients(*outs[1:])
    )
    assert all(result is out for result, out in zip((y, *gradients), outs, strict=True))
    assert_same_bits((y, *gradients), expected, np.float32)
    for given_array, original in zip((x, w, b, dy), operands, strict=True):
        if original is not None:
            np.testing.assert_array_equal(given_array, original)  # nothing but out is written


@algorithms
def test_expanded_arrays(algorithm):
    """Stride-0 weights (one filter for all channels), inputs and output gradients."""
    problem = Problem("expanded", 2, 5, 5, 13, 12, stride=2, groups=5, bias=False, padding=(15, 3))
    rng = np.random.default_rng(1)
    x = np.broadcast_to(rng.integers(-4, 5, 13).astype(np.float32), (2, 5, 13))
    w = np.broadcast_to(rng.integers(-4, 5, 12).astype(np.float32), (5, 1, 12))
    dy = np.broadcast_to(np.float32(3), (2, 5, problem.output_length))
    operands = (x, w, None, dy)
    assert_same_bits(computed(problem, operands, algorithm), definition(problem, operands), np.float32)


@settings(deadline=None, max_examples=100)
@given(problems(), st.sampled_from(ALGORITHMS))
def test_backward_is_the_adjoint_of_forward(problem, algorithm):
    """<dy, A x> = <Aᵀ dy, x> in x and in w, exactly, on integers."""
    x, w, _, dy = problem.operands(np.float64)
    y = nc.conv_transpose1d(x, w, None, **problem.forward_parameters, algorithm=algorithm)
    gradients = nc.conv_transpose1d_backward(dy, x, w, **problem.backward_parameters, algorithm=algorithm)
    assert inner(dy, y) == inner(gradients.input, x) == inner(gradients.weight, w)
    assert inner(gradients.bias, np.ones_like(gradients.bias)) == inner(dy, np.ones_like(dy))


@algorithms
@pytest.mark.parametrize("name", ["groups", "odd_stride_output_padding", "dilation_shares_factor_with_stride"])
def test_gradients_are_central_differences(name, algorithm):
    problem = next(p for p in CASES if p.name == name)
    x, w, b, dy = problem.operands(np.float64, exact=False)
    b = np.zeros(problem.out_channels) if b is None else b
    gradients = nc.conv_transpose1d_backward(dy, x, w, **problem.backward_parameters, algorithm=algorithm)

    def loss(*parameters):
        return inner(dy, nc.conv_transpose1d(*parameters, **problem.forward_parameters, algorithm=algorithm))

    rng = np.random.default_rng(3)
    for position, gradient in enumerate(gradients):
        for flat in rng.choice(gradient.size, min(gradient.size, 12), replace=False):
            index = np.unravel_index(flat, gradient.shape)
            sides = []
            for step in (1e-3, -1e-3):
                moved = [x.copy(), w.copy(), b.copy()]
                moved[position][index] += step
                sides.append(loss(*moved))
            # the loss is linear in each parameter, so the difference is exact but for rounding
            assert (sides[0] - sides[1]) / 2e-3 == pytest.approx(gradient[index], rel=1e-8, abs=1e-8)


@algorithms
def test_needs_chooses_gradients(algorithm):
    problem = CASES[4]
    x, w, _, dy = problem.operands(np.float32)
    everything = nc.conv_transpose1d_backward(dy, x, w, **problem.parameters, algorithm=algorithm)
    for wanted in (("input",), ("weight",), ("bias",), ["bias", "input"], {"weight", "bias"}):
        some = nc.conv_transpose1d_backward(dy, x, w, **problem.parameters, needs=wanted, algorithm=algorithm)
        for name in nc.Gradients._fields:
            if name in wanted:
                np.testing.assert_array_equal(getattr(some, name), getattr(everything, name))
            else:
                assert getattr(some, name) is None
    without_input = nc.conv_transpose1d_backward(
        dy, None, w, **problem.parameters, needs=("input", "bias"), input_length=problem.input_length
    )
    np.testing.assert_array_equal(without_input.input, everything.input)


@pytest.mark.parametrize(("groups", "in_channels", "out_channels"), [(1, 20, 70), (3, 60, 9), (40, 40, 40), (4, 4, 4)])
@pytest.mark.parametrize("length", [7, 700])
@pytest.mark.parametrize("step", [1, 2])  # of the output gradient's samples in memory
def test_a_bias_has_the_same_gradient_with_or_without_a_weights(groups, in_channels, out_channels, length, step):
    """It is added up beside the weight's, by whichever kernel serves the layer, in the order of its own kernel."""
    rng = np.random.default_rng(1)
    problem = Problem("bias", 3, in_channels, out_channels, length, 5, stride=2, padding=(1, -3), groups=groups)
    x, w, _, dy = problem.operands(np.float32)
    dy = rng.standard_normal((*dy.shape[:2], step * dy.shape[2])).astype(np.float32)[:, :, ::step]
    given = {**problem.parameters, "algorithm": "tiled"}
    beside = nc.conv_transpose1d_backward(dy, x, w, **given, needs=("weight", "bias")).bias
    np.testing.assert_array_equal(beside, nc.conv_transpose1d_backward(dy, x, w, **given, needs=("bias",)).bias)
    np.testing.assert_allclose(beside, dy.sum((0, 2), dtype=np.float64), rtol=1e-4, atol=1e-4)


@algorithms
@pytest.mark.parametrize("name", ["stride_8_kernel_16", "long", "long_batch_single_output_channel", "many_channels"])
def test_threads_items_and_runs_change_no_bit(name, algorithm, numba_threads):
    problem = next(p for p in CASES if p.name == name)
    operands = problem.operands(np.float32, exact=False)
    numba_threads(1)
    alone = computed(problem, operands, algorithm)
    for count in numba_threads.counts:
        numba_threads(count)
        for _ in range(2):
            for one, other in zip(alone, computed(problem, operands, algorithm), strict=True):
                np.testing.assert_array_equal(one, other)
    x, w, b, dy = operands
    item = nc.conv_transpose1d(x[:1], w, b, **problem.forward_parameters, algorithm=algorithm)
    np.testing.assert_array_equal(item, alone[0][:1])
    item = nc.conv_transpose1d_backward(
        dy[:1], x[:1], w, **problem.backward_parameters, algorithm=algorithm, needs=("input",)
    )
    np.testing.assert_array_equal(item.input, alone[1][:1])


@algorithms
@pytest.mark.parametrize("place", ["input", "weight"])
@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("name", ["padding_beyond_reach", "extended_both_ends", "kernel_below_stride", "groups"])
def test_inf_and_nan_reach_what_the_definition_lets_them_reach(name, value, place, algorithm):
    problem = next(p for p in CASES if p.name == name)
    clean = problem.operands(np.float64)
    array = getattr(clean, place)
    for flat in range(0, array.size, max(1, array.size // 7)):
        spoiled = array.copy()
        spoiled.flat[flat] = value
        operands = clean._replace(**{place: spoiled})
        assert_same_bits(computed(problem, operands, algorithm), definition(problem, operands), np.float64)


@algorithms
def test_accuracy_of_random_sums(algorithm):
    """float32 keeps the error of a plain running sum: below √terms rounding errors in the root mean square."""
    problem = Problem("accuracy", 1, 64, 8, 200, 8, stride=2, padding=3)
    operands = problem.operands(np.float32, exact=False)
    terms = (64 * 4, 8 * 8, 200, 400)
    for result, exact, count in zip(
        computed(problem, operands, algorithm), definition(problem, operands), terms, strict=True
    ):
        error = np.sqrt(np.mean((result - exact) ** 2)) / np.sqrt(np.mean(exact**2))
        assert error < np.sqrt(count) * np.finfo(np.float32).eps
