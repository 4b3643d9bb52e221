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
from numba_ctconv.cuda import ENGINE, arithmetic, fast, row_cuts, weight_product
from numba_ctconv.geometry import plan

DTYPES = ["float32", "float64", "float16", "bfloat16"]
if importlib.util.find_spec("ml_dtypes") is None:  # which gives NumPy that dtype
    DTYPES.remove("bfloat16")


product, product_of_weights = fast._product, weight_product.weight_product


@pytest.fixture(autouse=True)
def no_products(monkeypatch):
    """These layers take the kernels that are theirs."""
    monkeypatch.setattr(fast, "_product", lambda *_: pytest.fail("a product"))
    monkeypatch.setattr(weight_product, "weight_product", lambda *_: pytest.fail("a product"))


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


def weight_gradient(problem, operands, **options):
    x, w, _, dy = (None if a is None else ENGINE.upload(a) for a in operands)
    out = nc.Gradients(None, ENGINE.upload(np.full(operands[1].shape, np.nan, operands[1].dtype)), None)
    nc.conv_transpose1d_backward(
        dy, x, w, **problem.backward_parameters, algorithm="tiled", needs=("weight",), out=out, **options
    )
    return ENGINE.download(out.weight)


def exact_gradients(problem, operands):
    x, w, _, dy = wide(operands)
    keywords = {name: value for name, value in problem.parameters.items() if name != "output_padding"}
    return reference.conv_transpose1d_backward(dy, x, w, **keywords)


def wide(operands):
    return [None if a is None else a.astype(np.promote_types(a.dtype, np.float32)) for a in operands]


def same_bits(result, exact):
    rounded = exact.astype(result.dtype)
    both = np.promote_types(result.dtype, np.float32)  # NumPy does not know when two NaN of bfloat16 are equal
    np.testing.assert_array_equal(result.astype(both), rounded.astype(both), strict=True)


@st.composite
def depthwise_problems(draw, most_outputs=1, divides=False):
    kernel_size, stride, dilation = (draw(st.integers(1, most)) for most in (40, 12, 7))
    stride *= dilation if divides else 1
    length, channels, batch, outputs = (draw(st.integers(1, most)) for most in (60, 3, 3, most_outputs))
    full = (length - 1) * stride + dilation * (kernel_size - 1) + 1
    left = draw(st.integers(-9, full - 1))
    right = draw(st.integers(-9, full - 1 - max(left, 0)))
    return Problem(
        "drawn", batch, channels, channels * outputs, length, kernel_size, stride=stride,
        padding=(left, right), groups=channels, dilation=dilation, bias=draw(st.booleans()),
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
    same_bits(gradient(problem, operands), exact_gradients(problem, operands)[0])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    depthwise_problems(most_outputs=3, divides=True),
    st.sampled_from(DTYPES),
    st.sampled_from([1, row_cuts.ENOUGH_BLOCKS]),
)
def test_grad_weight_equals_the_definition(problem, dtype, enough):
    operands = problem.operands(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_cuts, "ENOUGH_BLOCKS", enough)
        result = weight_gradient(problem, operands)
    same_bits(result, exact_gradients(problem, operands)[1])


LARGE = {
    "several tiles": Problem("tiles", 1, 2, 2, 5000, 5, stride=2, padding=3, output_padding=1, groups=2),
    "several passes": Problem("passes", 2, 1, 1, 9000, 3, stride=1, padding=1),
    "wide stride": Problem("wide", 2, 2, 2, 3, 700, stride=300, padding=(37, -5), groups=2),
    "many taps": Problem("many", 1, 2, 2, 70, 1000, stride=1, padding=(501, 498), groups=2),
    "far taps": Problem("far", 1, 2, 2, 40, 5, dilation=490, padding=(900, 900), groups=2),
    "short rows": Problem("short", 9, 7, 7, 3, 4, stride=2, padding=1, groups=7),
    "phases without taps": Problem("phases", 3, 2, 2, 500, 3, stride=10, padding=(7, -20), groups=2, dilation=5),
    "many phases": Problem("many phases", 2, 1, 1, 90, 250, stride=100, padding=(133, 20)),
    "no channel alone": Problem("unbatched", None, 5, 5, 33, 12, stride=6, dilation=4, padding=2, groups=5, bias=False),
}
UNFIT = {"wide stride", "far taps", "no channel alone"}  # for the kernel of grad_weight
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
    same_bits(gradient(problem, operands), exact_gradients(problem, operands)[0])


@pytest.mark.parametrize("problem", [p for name, p in LARGE.items() if name not in UNFIT], ids=set(LARGE) - UNFIT)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("enough", [1, row_cuts.ENOUGH_BLOCKS])
def test_large_weight_gradients_equal_the_definition(monkeypatch, problem, dtype, enough):
    monkeypatch.setattr(row_cuts, "ENOUGH_BLOCKS", enough)
    operands = problem.operands(dtype)
    same_bits(weight_gradient(problem, operands), exact_gradients(problem, operands)[1])


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
    exact = exact_gradients(problem, operands)[0]
    assert np.isfinite(exact).any()
    same_bits(gradient(problem, operands), exact)
    same_bits(forward(problem, operands), reference.conv_transpose1d(*operands[:3], **problem.forward_parameters))


@pytest.mark.parametrize("bad", [np.inf, np.nan])
@pytest.mark.parametrize("where", ["input", "grad_output"])
@pytest.mark.parametrize("at", [0, 3, -1])
def test_what_is_not_finite_reaches_the_weights_it_should(where, bad, at):
    problem = Problem("bad", 2, 3, 3, 30, 7, stride=3, padding=(4, 4), groups=3)
    operands = problem.operands()
    getattr(operands, where)[1, 0, at] = bad
    exact = exact_gradients(problem, operands)[1]
    assert not np.isfinite(exact[0]).all()
    assert np.isfinite(exact[1:]).all()
    assert at == 3 or np.isfinite(exact[0]).any()
    same_bits(weight_gradient(problem, operands), exact)


def test_arrays_of_any_strides():
    problem = Problem("strides", 2, 3, 3, 20, 4, stride=2, groups=3)
    x, w, b, dy = problem.operands()
    exact = reference.conv_transpose1d(x, w, b, **problem.forward_parameters)
    wide_x, wide_w = (ENGINE.upload(np.repeat(a, 3, axis=2)) for a in (x, w))
    base = ENGINE.upload(np.full((*dy.shape[:2], 2 * dy.shape[2]), np.nan, np.float32))
    own = ENGINE.upload(np.full((3, 1, 8), np.nan, np.float32))
    out = nc.Gradients(None, own[:, :, ::2], None)
    given = ENGINE.upload(np.repeat(dy, 2, axis=2))[:, :, ::2], wide_x[:, :, ::3], wide_w[:, :, ::3]
    nc.conv_transpose1d_backward(
        *given, **problem.backward_parameters, algorithm="tiled", needs=("weight",), out=out
    )  # fmt: skip
    own = ENGINE.download(own)
    same_bits(own[:, :, ::2], exact_gradients(problem, (x, w, b, dy))[1])
    assert np.isnan(own[:, :, 1::2]).all()
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


weight_plans = st.builds(plan, st.integers(1, 1200), st.integers(1, 128), st.integers(1, 9)).filter(
    row_cuts.weight_fits
)


@given(weight_plans, st.integers(-50, 50), st.integers(1, 300), st.integers(1, 40), st.integers(1, 5000))
def test_every_term_of_the_weight_gradient_is_summed_once_and_within_memory(layer, crop, channels, batch, length):
    cut = row_cuts.weight_cut(layer, crop, channels, batch, length, 4)
    assert cut.lines * (cut.span * cut.stride + cut.samples) <= row_cuts.WEIGHT_ROOM
    assert cut.stride * cut.tap_groups * cut.lines * cut.lanes <= row_cuts.WEIGHT_THREADS
    most_taps = max(len(layer.taps(phase)) for phase in range(layer.stride))
    assert cut.ranges * cut.tap_groups * row_cuts.TAPS >= most_taps
    assert row_cuts.weight_blocks(cut, channels) == cut.parts * cut.ranges * channels
    # tiles and what a tile has, as in depthwise_weight.run
    assert (cut.parts - 1) * cut.part_tiles < cut.all_tiles <= cut.parts * cut.part_tiles
    assert cut.all_tiles == -(-batch // cut.lines) * cut.tiles
    first = cut.crop_quotient + np.arange(cut.tiles)[:, None, None] * cut.span
    own = np.arange(cut.lanes)[:, None] * row_cuts.TERMS + np.arange(row_cuts.TERMS)
    turns = np.arange(cut.passes)[:, None, None] * row_cuts.TERMS * cut.lanes
    q = np.sort((first + (turns + own).ravel()).ravel())
    np.testing.assert_array_equal(q, np.arange(q[0], q[0] + q.size))
    assert q[0] * layer.stride <= crop
    assert (q[-1] + 1) * layer.stride >= crop + length


def test_parts_of_the_weight_gradient_are_many_where_channels_are_few_and_bounded():
    layer = plan(12, 2, 1)
    assert row_cuts.weight_cut(layer, 5, 1000, 1, 500, 4).parts == 1
    cut = row_cuts.weight_cut(layer, 5, 24, 1, 880_000, 4)
    assert cut.parts * 24 >= row_cuts.ENOUGH_BLOCKS
    assert cut.part_tiles <= row_cuts.MOST_TILES
    cut = row_cuts.weight_cut(plan(1024, 1, 1), 0, 4096, 64, 880_000, 8)
    assert cut.parts == 1  # of 32 MiB


def test_long_rows_are_taken_by_few_threads_in_several_passes():
    layer = plan(12, 2, 1)
    assert row_cuts.forward_cut(layer, 15, 4096, 100_000).passes == row_cuts.MOST_PASSES
    assert row_cuts.forward_cut(layer, 15, 1, 1000).passes == 1
    assert row_cuts.forward_cut(layer, 15, 4096, 60).rows == 32
    assert not row_cuts.fits(plan(1025, 1, 1))
    assert not row_cuts.fits(plan(3, 1, 2000))


def test_what_does_not_fit_is_a_product(monkeypatch):
    products = []
    monkeypatch.setattr(fast, "_product", lambda *given: products.append(given) or product(*given))
    problem = Problem("unfit", 1, 2, 2, 4, 3, dilation=2000, groups=2)
    forward(problem, problem.operands())
    assert products


def test_what_does_not_fit_has_its_weight_gradient_by_a_product(monkeypatch):
    products = []
    monkeypatch.setattr(
        weight_product, "weight_product", lambda *given: products.append(given) or product_of_weights(*given)
    )
    problem = Problem("unfit", 1, 2, 2, 4, 3, dilation=2, groups=2)
    operands = problem.operands()
    same_bits(weight_gradient(problem, operands), exact_gradients(problem, operands)[1])
    assert products


def test_tf32_has_no_kernel_of_its_own():
    assert fast._full(arithmetic.TF32) is arithmetic.FLOAT32
