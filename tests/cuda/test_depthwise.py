"""The kernels of depthwise layers on CUDA: on a GPU, or a block at a time on the emulator, against the definition."""

import importlib.util

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

import numba_ctconv as nc
from numba_ctconv import reference
from numba_ctconv.benchmark.workloads import Problem
from numba_ctconv.cuda import ENGINE, arithmetic, fast, row_cuts
from numba_ctconv.geometry import plan

DTYPES = ["float32", "float64", "float16", "bfloat16"]
if importlib.util.find_spec("ml_dtypes") is None:  # which gives NumPy that dtype
    DTYPES.remove("bfloat16")


@pytest.fixture(autouse=True)
def no_products(monkeypatch):
    """These layers take the kernels that are theirs."""
    monkeypatch.setattr(fast, "_product", lambda *_: pytest.fail("a product"))


def forward(problem, operands, **options):
    x, w, b, dy = (None if a is None else ENGINE.upload(a) for a in operands)
    out = ENGINE.upload(np.full(dy.shape, np.nan, dy.dtype))
    nc.conv_transpose1d(x, w, b, **problem.forward_parameters, algorithm="tiled", out=out, **options)
    return ENGINE.download(out)


def gradient(problem, operands, **options):
    """Of the input."""
    x, w, _, dy = (None if a is None else ENGINE.upload(a) for a in operands)
    out = nc.Gradients(ENGINE.upload(np.full(operands[0].shape, np.nan, operands[0].dtype)), None, None)
    nc.conv_transpose1d_backward(
        dy, x, w, **problem.backward_parameters, algorithm="tiled", needs=("input",), out=out, **options
    )
    return ENGINE.download(out.input)


def exact_gradient(problem, operands):
    x, w, _, dy = wide(operands)
    keywords = {name: value for name, value in problem.parameters.items() if name != "output_padding"}
    return reference.conv_transpose1d_backward(dy, x, w, **keywords)[0]


def wide(operands):
    return [None if a is None else a.astype(np.promote_types(a.dtype, np.float32)) for a in operands]


def same_bits(result, exact):
    rounded = exact.astype(result.dtype)
    both = np.promote_types(result.dtype, np.float32)  # NumPy does not know when two NaN of bfloat16 are equal
    np.testing.assert_array_equal(result.astype(both), rounded.astype(both), strict=True)


@st.composite
def depthwise_problems(draw):
    kernel_size, stride, dilation = (draw(st.integers(1, most)) for most in (40, 12, 7))
    length, channels, batch = (draw(st.integers(1, most)) for most in (60, 3, 3))
    full = (length - 1) * stride + dilation * (kernel_size - 1) + 1
    left = draw(st.integers(-9, full - 1))
    right = draw(st.integers(-9, full - 1 - max(left, 0)))
    return Problem(
        "drawn", batch, channels, channels, length, kernel_size, stride=stride, padding=(left, right), groups=channels,
        dilation=dilation, bias=draw(st.booleans()),
    )  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(depthwise_problems(), st.sampled_from(DTYPES))
def test_forward_equals_the_definition(problem, dtype):
    operands = problem.operands(dtype)
    same_bits(forward(problem, operands), reference.conv_transpose1d(*wide(operands)[:3], **problem.forward_parameters))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(depthwise_problems(), st.sampled_from(DTYPES))
def test_grad_input_equals_the_definition(problem, dtype):
    operands = problem.operands(dtype)
    same_bits(gradient(problem, operands), exact_gradient(problem, operands))


LARGE = {
    "several tiles": Problem("tiles", 1, 2, 2, 5000, 5, stride=2, padding=3, output_padding=1, groups=2),
    "several passes": Problem("passes", 2, 1, 1, 9000, 3, stride=1, padding=1),
    "wide stride": Problem("wide", 2, 2, 2, 3, 700, stride=300, padding=(37, -5), groups=2),
    "many taps": Problem("many", 1, 2, 2, 70, 1000, stride=1, padding=(501, 498), groups=2),
    "far taps": Problem("far", 1, 2, 2, 40, 5, dilation=490, padding=(900, 900), groups=2),
    "short rows": Problem("short", 9, 7, 7, 3, 4, stride=2, padding=1, groups=7),
    "no channel alone": Problem("unbatched", None, 5, 5, 33, 12, stride=6, dilation=4, padding=2, groups=5, bias=False),
}
large = pytest.mark.parametrize("problem", LARGE.values(), ids=LARGE)


@large
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("enough", [1, row_cuts.ENOUGH_BLOCKS])
def test_large_problems_equal_the_definition(monkeypatch, problem, dtype, enough):
    monkeypatch.setattr(row_cuts, "ENOUGH_BLOCKS", enough)
    operands = problem.operands(dtype)
    same_bits(forward(problem, operands), reference.conv_transpose1d(*wide(operands)[:3], **problem.forward_parameters))


@large
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_gradients_equal_the_definition(problem, dtype):
    operands = problem.operands(dtype)
    same_bits(gradient(problem, operands), exact_gradient(problem, operands))


def test_bits_depend_on_neither_batch_nor_length_nor_precision():
    problem = Problem("bits", 3, 2, 2, 3000, 90, stride=2, padding=(10, 10), groups=2)
    x, w, b, dy = (a.astype(np.float32) for a in problem.operands(exact=False))
    whole = forward(problem, (x, w, b, dy))
    np.testing.assert_array_equal(forward(problem, (x, w, b, dy), precision="tf32"), whole)
    back = gradient(problem, (x, w, b, dy))
    np.testing.assert_array_equal(gradient(problem, (x, w, b, dy), precision="tf32"), back)
    part = Problem("part", 1, 2, 2, 300, 90, stride=2, padding=(88, 88), groups=2)  # what 300 samples alone decide
    first = 1234
    cut = x[1:2, :, first : first + 300].copy()
    own = forward(part, (cut, w, b, np.empty((1, 2, part.output_length), np.float32)))
    begin = 2 * first + 88 - 10
    np.testing.assert_array_equal(own, whole[1:2, :, begin : begin + own.shape[2]])
    given = dy[1:2, :, begin : begin + own.shape[2]].copy()  # reaches all but the samples at the ends
    own = gradient(part, (cut, w, b, given))
    np.testing.assert_array_equal(own[:, :, 44:-44], back[1:2, :, first + 44 : first + 256])


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("where", ["weight", "input", "grad_output"])
def test_what_is_not_finite_reaches_what_it_should(where, bad):
    problem = Problem("bad", 2, 3, 3, 30, 7, stride=3, padding=(-4, 2), groups=3, dilation=2)
    operands = problem.operands()
    array = getattr(operands, where)
    array[1, 0, 5] = array[0, 0, 0] = bad
    exact = exact_gradient(problem, operands)
    assert np.isfinite(exact).any()
    same_bits(gradient(problem, operands), exact)
    same_bits(forward(problem, operands), reference.conv_transpose1d(*operands[:3], **problem.forward_parameters))


def test_arrays_of_any_strides():
    problem = Problem("strides", 2, 3, 3, 20, 4, stride=2, groups=3)
    x, w, b, dy = problem.operands()
    exact = reference.conv_transpose1d(x, w, b, **problem.forward_parameters)
    wide_x, wide_w = (ENGINE.upload(np.repeat(a, 3, axis=2)) for a in (x, w))
    base = ENGINE.upload(np.full((*dy.shape[:2], 2 * dy.shape[2]), np.nan, np.float32))
    given = wide_x[:, :, ::3], wide_w[:, :, ::3], ENGINE.upload(b)
    nc.conv_transpose1d(*given, **problem.forward_parameters, algorithm="tiled", out=base[:, :, ::2])
    host = ENGINE.download(base)
    same_bits(host[:, :, ::2], exact)
    assert np.isnan(host[:, :, 1::2]).all()


# --- how rows are cut -------------------------------------------------------------------------------------------------

plans = st.builds(plan, st.integers(1, 1200), st.integers(1, 600), st.integers(1, 400)).filter(row_cuts.fits)


@given(plans, st.integers(-50, 50), st.integers(1, 40), st.integers(1, 5000))
def test_every_output_is_computed_once_and_within_memory(layer, crop, count, length):
    cut = row_cuts.forward_cut(layer, crop, count, length)
    assert cut.rows * cut.samples <= row_cuts.ROOM
    assert cut.rows * layer.kernel_size <= row_cuts.WEIGHTS
    blocks = row_cuts.blocks_of(cut, count)
    assert blocks * cut.rows // cut.tiles < count + cut.rows
    # what a thread's lane, pass and place in the pass stand for, as in depthwise.forward
    turns = np.arange(cut.tiles * cut.passes)
    results = turns[:, None, None] * row_cuts.RESULTS * cut.step + np.arange(row_cuts.RESULTS)[:, None] * cut.step
    found = np.sort((results + np.arange(cut.step)).ravel())
    np.testing.assert_array_equal(found[: length + 1], np.arange(min(length + 1, found.size)))
    assert found.size >= length > found.size - cut.passes * row_cuts.RESULTS * cut.step
    phase = cut.crop_phase + np.arange(cut.step)
    assert cut.crop_quotient * layer.stride + cut.crop_phase == crop
    table = np.array(row_cuts.phase_table(layer)).reshape(3, layer.stride)
    for r in {0, int(phase[0]) % layer.stride, layer.stride - 1}:
        assert table[2, r] == len(layer.taps(r))
        assert cut.fewest_taps <= table[2, r] <= cut.most_taps
    last = (cut.crop_phase + cut.step - 1) // layer.stride + (cut.passes * row_cuts.RESULTS - 1) * cut.space
    assert last + cut.reach < cut.samples


@given(plans, st.integers(-50, 50), st.integers(1, 40), st.integers(1, 5000))
def test_every_gradient_is_computed_once(layer, crop, count, length):
    cut = row_cuts.grad_input_cut(layer, crop, length)
    threads = row_cuts.THREADS // cut.rows
    blocks = row_cuts.blocks_of(cut, count)
    assert count <= blocks // cut.tiles * cut.rows < count + cut.rows
    # tile, place in the pass and lane, as in depthwise.grad_input
    first = (
        np.arange(cut.tiles)[:, None, None] * row_cuts.RESULTS * threads
        + np.arange(row_cuts.RESULTS)[:, None] * threads
    )
    found = np.sort((first + np.arange(threads)).ravel())
    np.testing.assert_array_equal(found, np.arange(found.size))
    assert found.size >= length > found.size - row_cuts.RESULTS * threads


def test_long_rows_are_taken_by_few_threads_in_several_passes():
    layer = plan(12, 2, 1)
    assert row_cuts.forward_cut(layer, 15, 4096, 100_000).passes == row_cuts.MOST_PASSES
    assert row_cuts.forward_cut(layer, 15, 1, 1000).passes == 1
    assert row_cuts.forward_cut(layer, 15, 4096, 60).rows == 32
    assert not row_cuts.fits(plan(1025, 1, 1))
    assert not row_cuts.fits(plan(3, 1, 2000))


def test_what_does_not_fit_is_a_product(monkeypatch):
    products = []
    monkeypatch.setattr(fast, "_product", lambda *given: products.append(given))
    problem = Problem("unfit", 1, 2, 2, 4, 3, dilation=2000, groups=2)
    forward(problem, problem.operands())
    assert products


def test_tf32_has_no_kernel_of_its_own():
    assert fast._full(arithmetic.TF32) is arithmetic.FLOAT32
