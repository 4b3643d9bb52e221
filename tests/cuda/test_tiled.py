"""The tiled kernels on CUDA: on a GPU, or a block at a time on the emulator, which also looks for races.

test_operations.py holds all algorithms against the definition; here is what only the tiles can get wrong.
"""

import importlib.util
import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
from numba import cuda
from strategies import problems

import numba_ctconv as nc
from numba_ctconv import reference, shapes
from numba_ctconv.benchmark.workloads import Problem, layer_problems
from numba_ctconv.cuda import (
    ENGINE,
    arithmetic,
    arrays,
    emulator,
    fast,
    fragments,
    launches,
    multiply,
    packing,
    parts,
    product,
    queues,
    simt,
    tile,
    tiles,
)
from numba_ctconv.cuda.arithmetic import arithmetic_of
from numba_ctconv.geometry import families, plan

emulated = pytest.mark.skipif(not queues.SIMULATED, reason="there is a GPU, which the emulator stands in for")
# what a caller says for each arithmetic
ARITHMETICS = {
    "float32": (np.float32, "ieee"),
    "float64": (np.float64, "ieee"),
    "tf32": (np.float32, "tf32"),
    "float16": (np.float16, "ieee"),
    "bfloat16": ("bfloat16", "ieee"),
}
if importlib.util.find_spec("ml_dtypes") is None:  # which gives NumPy that dtype
    del ARITHMETICS["bfloat16"]
arithmetics = pytest.mark.parametrize(("dtype", "precision"), ARITHMETICS.values(), ids=ARITHMETICS)
every = pytest.mark.parametrize("own", arithmetic.ALL, ids=lambda own: own.name)


def on_device(operands):
    return [None if array is None else ENGINE.upload(array) for array in operands]


def forward(problem, operands, **options):
    x, w, b, dy = on_device(operands)
    out = ENGINE.upload(np.full(dy.shape, np.nan, dy.dtype))
    nc.conv_transpose1d(x, w, b, **problem.forward_parameters, algorithm="tiled", **options, out=out)
    return ENGINE.download(out)


def backward(problem, operands, **options):
    """The gradients of input and weight."""
    x, w, _, dy = on_device(operands)
    out = nc.Gradients(*(ENGINE.upload(np.full(a.shape, np.nan, a.dtype)) for a in (x, w)), None)
    nc.conv_transpose1d_backward(
        dy, x, w, **problem.backward_parameters, algorithm="tiled", needs=("input", "weight"), **options, out=out
    )
    return [ENGINE.download(out.input), ENGINE.download(out.weight)]


def all_of(problem, operands, precision):
    """The output and the gradients of input and weight."""
    options = {"precision": precision}
    return [forward(problem, operands, **options), *backward(problem, operands, **options)]


def expected_of(problem, operands):
    x, w, b, dy = (None if a is None else a.astype(np.promote_types(a.dtype, np.float32)) for a in operands)
    keywords = {name: value for name, value in problem.parameters.items() if name != "output_padding"}
    return [
        reference.conv_transpose1d(x, w, b, **problem.forward_parameters),
        *reference.conv_transpose1d_backward(dy, x, w, **keywords)[:2],
    ]


def same_bits(results, expected):
    for result, exact in zip(results, expected, strict=True):
        rounded = exact.astype(result.dtype)
        wide = np.promote_types(result.dtype, np.float32)  # NumPy does not know when two NaN of bfloat16 are equal
        np.testing.assert_array_equal(result.astype(wide), rounded.astype(wide), strict=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problems(), st.sampled_from(sorted(ARITHMETICS)))
def test_any_problem_equals_the_definition(problem, name):
    dtype, precision = ARITHMETICS[name]
    operands = problem.operands(dtype)
    same_bits(all_of(problem, operands, precision), expected_of(problem, operands))


# More rows, terms and columns than a tile and a pipeline hold, none of them a multiple of anything.
LARGE = {
    "rows_terms_columns": Problem("rows", 2, 41, 47, 150, 4, stride=2, padding=1),
    "taps_beyond_a_stage": Problem("taps", 1, 3, 5, 70, 41, stride=2, padding=(7, -3)),
    "phases_beyond_a_tile": Problem("phases", 1, 2, 2, 9, 300, stride=150, padding=11),
    "groups": Problem("groups", 2, 24, 50, 40, 6, stride=3, groups=2, padding=2),
    "reach_beyond_a_tile": Problem("reach", 2, 5, 6, 160, 5, stride=2, dilation=90, padding=(100, 55)),
    "short_items": Problem("short", 40, 20, 34, 3, 4, stride=2, padding=1),
    "few_tiles": Problem("few", 1, 520, 21, 3, 4, stride=2, padding=(1, 0)),
}
large = pytest.mark.parametrize("problem", LARGE.values(), ids=LARGE)


@large
@arithmetics
def test_large_problems_equal_the_definition(problem, dtype, precision):
    operands = problem.operands(dtype)
    same_bits(all_of(problem, operands, precision), expected_of(problem, operands))


# --- bits -------------------------------------------------------------------------------------------------------------


def normal(problem, dtype):
    """Operands whose sums are rounded."""
    wide = problem.operands(exact=False)
    return type(wide)(*(None if a is None else a.astype(dtype) for a in wide))


@large
@pytest.mark.parametrize("name", [name for name in ARITHMETICS if name not in ("float64", "bfloat16")])
@pytest.mark.parametrize(("enough", "slack"), [(1, 8), (10**9, 8), (1, 10**9), (10**9, 10**9)])
def test_bits_depend_neither_on_the_tile_nor_on_how_samples_lie(monkeypatch, problem, enough, slack, name):
    """Which a call chooses by its batch and length, so that it must not matter."""
    dtype, precision = ARITHMETICS[name]
    operands = normal(problem, dtype)
    options = {"precision": precision}
    usual = [forward(problem, operands, **options), backward(problem, operands, **options)[0]]
    monkeypatch.setattr(tiles, "ENOUGH_BLOCKS", enough)
    monkeypatch.setattr(tiles, "SLACK", slack)
    fast.forget()
    same_bits([forward(problem, operands, **options), backward(problem, operands, **options)[0]], usual)


@pytest.fixture
def split(monkeypatch):
    """Have products split into parts of a few stages, or not: split(stages) -> the launches from then on."""
    launched = []

    def run(prepared, queue, *arguments):
        launched.append(prepared)
        if queues.SIMULATED and prepared.kernel is not parts.add_parts:
            for sums in arguments:
                if sums.ndim == 4:
                    sums[...] = np.nan  # what nobody writes, shows
        return started(prepared, queue, *arguments)

    started = launches.run
    monkeypatch.setattr(launches, "run", run)

    def into(stages):
        monkeypatch.setattr(tiles, "PART_STAGES", stages or 10**9)
        monkeypatch.setattr(tiles, "SPLIT_SUMS", 10**9)
        fast.forget()
        launched.clear()
        return launched

    return into


def adding(launched):
    """How many of the launches add parts."""
    return sum(each.kernel is parts.add_parts for each in launched)


def products(problem, operands, precision):
    """What is split: the output and the gradient of the input."""
    _, w, _, dy = on_device(operands)
    out = nc.Gradients(ENGINE.upload(np.full(operands.input.shape, np.nan, dy.dtype)), None, None)
    nc.conv_transpose1d_backward(
        dy, None, w, **problem.backward_parameters, algorithm="tiled", needs=("input",), precision=precision, out=out,
        input_length=problem.input_length,
    )  # fmt: skip
    return [forward(problem, operands, precision=precision), ENGINE.download(out.input)]


SPLIT = {
    "few_tiles": LARGE["few_tiles"],
    "several_items": Problem("several", 2, 41, 47, 40, 4, stride=2, padding=1),
    "short_items": Problem("dense", 40, 140, 9, 3, 4, stride=2, padding=1),
    "groups": Problem("groups", 2, 60, 50, 40, 6, stride=3, groups=2, padding=2),
    "cropped_families": Problem("families", 2, 40, 3, 17, 7, stride=3, dilation=2, padding=(11, -4), bias=False),
}


@pytest.mark.parametrize("problem", SPLIT.values(), ids=SPLIT)
@arithmetics
def test_bits_do_not_depend_on_whether_a_product_is_split(split, problem, dtype, precision):
    operands = normal(problem, dtype)
    launched = split(None)
    whole = products(problem, operands, precision)
    assert adding(launched) == 0
    for stages in (1, 3):  # of a block, and of several, where there are as many
        launched = split(stages)
        same_bits(products(problem, operands, precision), whole)
        assert stages > 1 or adding(launched) > 0


@arithmetics
@pytest.mark.filterwarnings("ignore:invalid value")
def test_inf_in_a_weight_means_the_same_to_all_parts(split, dtype, precision):
    """A tile leaves absent samples out in all of its parts, whichever of them meets the weight."""
    problem = Problem("infinite", 2, 70, 60, 6, 5, stride=2, padding=(3, 2))
    operands = normal(problem, dtype)
    operands.weight[0, 0, :], operands.weight[69, 3, 1], operands.weight[30, 59, 4] = np.inf, np.nan, -np.inf
    split(None)
    whole = products(problem, operands, precision)
    assert all(np.isfinite(values).any() and not np.isfinite(values).all() for values in whole)
    for stages in (1, 3):
        launched = split(stages)
        same_bits(products(problem, operands, precision), whole)
        assert adding(launched) >= (2 if stages == 1 else 1)


@emulated
@pytest.mark.filterwarnings("ignore:invalid value")
def test_all_parts_of_a_tile_take_the_same_way(split, monkeypatch):
    """Tensor cores may add in another order than the sums that leave absent samples out, and do so here."""

    def products_first(name):
        multiply_add = in_turn(name)
        return lambda sums, *operands: sums + multiply_add(np.zeros_like(sums), *operands)

    in_turn = simt.tensor.multiply_add
    monkeypatch.setattr(simt.tensor, "multiply_add", products_first)
    kept = (fast._kernels, product.product)
    try:
        for each in kept:
            each.cache_clear()
        problem = Problem("one_way", 1, 200, 20, 3, 4, stride=2)
        operands = normal(problem, np.float32)
        split(None)
        finite = forward(problem, operands, precision="tf32")
        operands.weight[199, 3, 1] = np.inf  # of the last stage
        whole = forward(problem, operands, precision="tf32")
        assert not np.array_equal(whole[:, 4:], finite[:, 4:])
        split(1)
        same_bits([forward(problem, operands, precision="tf32")], [whole])
    finally:
        for each in kept:
            each.cache_clear()


def test_few_tiles_are_split_by_themselves(split):
    problem = LARGE["few_tiles"]
    operands = problem.operands()
    launched = split(tiles.PART_STAGES)
    same_bits([forward(problem, operands)], expected_of(problem, operands)[:1])
    assert adding(launched) == 1


@pytest.mark.parametrize("own", [arithmetic.FLOAT32, arithmetic.TF32], ids=lambda own: own.name)
def test_both_ways_for_samples_to_lie_are_taken(own):
    layer = tiles.forward_layer(plan(4, 2, 1), families(plan(4, 2, 1))[0], (64, 32, 4), 1, own)
    (wide, narrow) = tile.tiles_of(own)[layer.tile_rows]
    enough = tiles.ENOUGH_BLOCKS * wide.columns
    for batch, positions, chosen, spaced in ((1, enough, wide, 1), (1, 5, narrow, 1), (64, 5, narrow, 0)):
        assert tiles.tile_for(layer, batch, positions) == chosen
        assert tiles.sizes_of(layer, chosen, batch, 0, 0, 0, positions).spaced == spaced


@arithmetics
def test_an_item_has_the_same_bits_in_any_batch_and_a_chunk_in_any_stream(dtype, precision):
    problem = LARGE["rows_terms_columns"]
    operands = normal(problem, dtype)
    whole, gradient, _ = all_of(problem, operands, precision)
    for n in range(2):
        alone = operands._replace(input=operands.input[n : n + 1], grad_output=operands.grad_output[n : n + 1])
        same_bits(all_of(problem, alone, precision)[:2], [whole[n : n + 1], gradient[n : n + 1]])
    # samples 50 to 59 of the input reach outputs 100 to 119, and these reach nothing else than what 49 to 60 do
    _, w, b, _ = on_device(operands)
    chunk = nc.conv_transpose1d(
        cuda.to_device(operands.input[:, :, 49:61].copy()), w, b, stride=2, padding=(3, 3), algorithm="tiled",
        precision=precision,
    )  # fmt: skip
    np.testing.assert_array_equal(chunk.copy_to_host(), whole[:, :, 100:120])


def test_what_a_call_launches_is_worked_out_once_for_its_forms():
    problem, longer = (Problem("kept", 2, 3, 4, length, 4, stride=2, padding=1) for length in (5, 6))
    kept = (fast._forward, fast._grad_input, fast._grad_weight)

    def misses(of):
        operands = of.operands()
        same_bits(all_of(of, operands, "ieee"), expected_of(of, operands))
        return [each.cache_info().misses for each in kept]

    assert misses(problem) == [1, 1, 1]
    assert misses(problem) == [1, 1, 1]
    assert misses(longer) == [2, 2, 2]
    assert misses(problem) == [2, 2, 2]


@pytest.mark.parametrize(
    "kept",
    [
        fast._forward, fast._grad_input, fast._grad_weight, launches.prepare, arrays.form_of, arrays.contiguous,
        shapes._described_forward, shapes._described_backward,
    ],
    ids=lambda kept: kept.__name__,
)  # fmt: skip
def test_what_is_kept_for_shapes_is_bounded(kept):
    assert 0 < kept.cache_info().maxsize <= 1024


@pytest.mark.parametrize("name", ["float32", "tf32", "float16"])
@pytest.mark.parametrize("terms", [32, 128, 10**6])
def test_grad_weight_is_cut_where_its_sizes_say(monkeypatch, terms, name):
    """Exact sums don't show where the cuts are; the number of parts does."""
    problem = LARGE["rows_terms_columns"]
    dtype, precision = ARITHMETICS[name]
    operands = problem.operands(dtype)
    own = arithmetic_of(np.dtype(dtype), precision)
    monkeypatch.setattr(tiles, "ENOUGH_BLOCKS", 1)
    monkeypatch.setattr(tiles, "PART_TERMS", terms)
    sizes = weight_sizes_of(problem, own)
    block = tile.BLOCK_STAGES * tile.WORDS * own.terms
    assert tiles.parts_of(sizes) == math.ceil(problem.batch * problem.input_length / max(terms, block))
    same_bits(backward(problem, operands, precision=precision), expected_of(problem, operands)[1:])


# --- Inf and NaN ------------------------------------------------------------------------------------------------------

SPECIAL = Problem("special", 2, 3, 4, 40, 5, stride=2, padding=(3, 2))


@arithmetics
@pytest.mark.filterwarnings("ignore:invalid value")
def test_inf_and_nan_reach_only_their_outputs(dtype, precision):
    operands = SPECIAL.operands(dtype)
    operands.input[0, 0, [0, -1]], operands.input[1, 1, 20] = np.inf, np.nan
    operands.grad_output[0, 1, 0], operands.grad_output[1, 2, -1] = np.inf, np.nan
    exact = expected_of(SPECIAL, operands)
    assert all(np.isfinite(values).any() and not np.isfinite(values).all() for values in exact)
    same_bits(all_of(SPECIAL, operands, precision), exact)


@arithmetics
@pytest.mark.filterwarnings("ignore:invalid value")
def test_inf_in_a_weight_meets_no_absent_sample(dtype, precision):
    """Tiles reach beyond both ends of an item, and the first and last outputs lack some of their taps."""
    operands = SPECIAL.operands(dtype)
    operands.weight[0, 0, :], operands.weight[2, 3, 1] = np.inf, np.nan
    operands.input[operands.input == 0] = 1
    exact = expected_of(SPECIAL, operands)
    assert all(np.isfinite(values).any() for values in exact)
    same_bits(all_of(SPECIAL, operands, precision), exact)


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")
def test_what_tf32_rounds_to_inf_meets_no_absent_sample():
    """The largest float32 numbers are beyond tf32's."""
    operands = SPECIAL.operands()
    operands.weight[0, 0, :], operands.input[0, 1, [0, -1]] = np.finfo(np.float32).max, np.finfo(np.float32).min
    operands.input[0, 0, :] = 1
    rounded = SPECIAL.operands()
    rounded.weight[0, 0, :], rounded.input[0, 1, [0, -1]], rounded.input[0, 0, :] = np.inf, -np.inf, 1
    exact = expected_of(SPECIAL, rounded)
    assert all(np.isfinite(values).any() and not np.isfinite(values).all() for values in exact)
    same_bits(all_of(SPECIAL, operands, "tf32"), exact)


# --- rounding ---------------------------------------------------------------------------------------------------------


def test_tf32_rounds_both_factors_to_nearest():
    """To 10 bits after the point, ties away from zero."""
    ulp = 2.0**-10
    factors = {1 + ulp / 2: 1 + ulp, 1 + 0.49 * ulp: 1, -1 - ulp / 2: -1 - ulp, 1 + 1.49 * ulp: 1 + ulp, 3: 3}
    given, rounded = np.array(list(factors), np.float32), np.array(list(factors.values()), np.float32)
    x, w = given[None, None, :], given[None, None, ::-1]
    two = np.repeat(w, 2, axis=1)  # output channels, for with one the layer is depthwise
    y = nc.conv_transpose1d(*on_device([x, two[..., :1].copy()]), algorithm="tiled", precision="tf32")
    np.testing.assert_array_equal(y.copy_to_host()[0, 0], rounded * rounded[-1])
    y = nc.conv_transpose1d(*on_device([x[..., -1:].copy(), two]), algorithm="tiled", precision="tf32")
    np.testing.assert_array_equal(y.copy_to_host()[0, 0], rounded[::-1] * rounded[-1])
    dy, two = np.ones((1, 2, len(factors)), np.float32), np.repeat(x, 2, axis=1)
    gradients = nc.conv_transpose1d_backward(
        *on_device([dy, two, np.ones((2, 2, 1), np.float32)]), algorithm="tiled", precision="tf32", needs=("weight",)
    )
    assert gradients.weight.copy_to_host()[0, 0, 0] == rounded.sum()


@pytest.mark.parametrize(
    "name", [name for name in ARITHMETICS if "float" in name and name not in ("float32", "float64")]
)
def test_halves_are_summed_in_float32_and_rounded_once(name):
    problem = LARGE["rows_terms_columns"]
    half = normal(problem, ARITHMETICS[name][0])
    results = all_of(problem, half, "ieee")
    for result, exact in zip(results, expected_of(problem, half), strict=True):
        step = 2.0 ** (-11 if name == "float16" else -8)
        error = np.abs(result.astype(np.float64) - exact)
        assert (error <= step * np.abs(exact) + 1e-4).all()
        assert (result.astype(np.float32) == exact.astype(result.dtype).astype(np.float32)).mean() > 0.99


@emulated
@pytest.mark.parametrize("name", [name for name in ARITHMETICS if name != "bfloat16"])
def test_a_gpu_without_the_instructions_gathers(monkeypatch, name):
    dtype, precision = ARITHMETICS[name]
    operands = SPECIAL.operands(dtype)
    monkeypatch.setattr(queues, "capability", lambda _: (7, 5))
    monkeypatch.setattr(fast, "forward", None)
    monkeypatch.setattr(fast, "grad_input", None)
    monkeypatch.setattr(fast, "grad_weight", None)
    same_bits(all_of(SPECIAL, operands, precision), expected_of(SPECIAL, operands))


# --- what a layer keeps -----------------------------------------------------------------------------------------------


def test_a_layer_packs_its_weight_once(monkeypatch):
    packed = []

    def run(prepared, *arguments):
        packed.append(prepared.kernel in (packing.pack(own) for own in arithmetic.ALL))
        return started(prepared, *arguments)

    started = launches.run
    monkeypatch.setattr(launches, "run", run)
    layer = nc.ConvTranspose1d(3, 4, 4, stride=2, device="cuda", algorithm="tiled")
    x = np.ones((1, 3, 5), np.float32)
    for _ in range(3):
        layer(cuda.to_device(x))
    assert sum(packed) == 1
    layer.weight = 2 * layer.state_dict()["weight"]
    y = layer(cuda.to_device(x)).copy_to_host()
    assert sum(packed) == 2
    expected = nc.conv_transpose1d(x, layer.state_dict()["weight"], layer.state_dict()["bias"], stride=2)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    with nc.float32_precision("tf32"):  # another panel
        rounded = layer(cuda.to_device(x)).copy_to_host()
    assert sum(packed) == 3
    assert not np.array_equal(rounded, y)
    np.testing.assert_array_equal(layer(cuda.to_device(x)).copy_to_host(), y)
    assert sum(packed) == 3


# --- how products are cut ---------------------------------------------------------------------------------------------

LAYERS = [*layer_problems(core=True), *LARGE.values()]
layers = pytest.mark.parametrize("problem", LAYERS, ids=lambda problem: problem.name)


def products_of(problem, arithmetic):
    """(layer, place) of forward's families and of grad_input."""
    own = plan(problem.kernel_size, problem.stride, problem.dilation)
    shape = (problem.in_channels, problem.out_channels // problem.groups, problem.kernel_size)
    crop = problem.padding[0] if isinstance(problem.padding, tuple) else problem.padding
    first = crop // own.stride
    positions = (crop + problem.output_length - 1) // own.stride - first + 1
    for family in families(own):
        if family.taps:
            layer = tiles.forward_layer(own, family, shape, problem.groups, arithmetic)
            yield layer, (-family.shift, crop, first, positions)
    yield tiles.grad_input_layer(own, shape, problem.groups, arithmetic), (-crop, 0, 0, problem.input_length)


def weight_sizes_of(problem, arithmetic):
    own = plan(problem.kernel_size, problem.stride, problem.dilation)
    shape = (problem.in_channels, problem.out_channels // problem.groups, problem.kernel_size)
    cut = (shape, problem.groups, problem.batch or 1, problem.input_length, 0, arithmetic)
    return tiles.weight_sizes(own, tiles.weight_tile(shape, problem.groups, arithmetic), *cut)


@layers
@every
def test_stages_fit_their_room_and_columns_are_covered_once(problem, own):
    batch = problem.batch or 1
    for layer, place in products_of(problem.with_length(batch, min(problem.input_length, 300)), own):
        for each in tile.tiles_of(own)[layer.tile_rows]:
            sizes = tiles.sizes_of(layer, each, batch, *place)
            assert 0 < sizes.stage_words <= sizes.panel_words <= tile.WORDS
            assert sizes.panel_words % own.step == 0
            assert sizes.stages * sizes.stage_words * own.terms >= layer.term_channels * layer.taps
            planes = layer.step_in if sizes.spaced else 1
            assert sizes.stage_rows * planes * sizes.pitch <= each.slab_room
            offsets = tiles.term_offset(sizes, np.arange(sizes.stage_words))
            assert offsets.min() >= 0
            assert offsets.max() + each.columns <= each.slab_room
            assert each.threads % sizes.row_lanes == 0
            found = [
                (item, position)
                for column_tile in range(tiles.column_tiles(sizes, each, batch))
                for item, position in zip(
                    *tiles.column_at(sizes, each.columns, batch, column_tile, np.arange(each.columns)), strict=True
                )
                if item >= 0
            ]
            assert found == list(itertools.product(range(batch), range(place[3])))
            rows = layer.channels * layer.phases
            assert (layer.row_tiles - 1) * layer.tile_rows < rows <= layer.row_tiles * layer.tile_rows


def cut(problem, own):
    """(layer, tile, sizes) of forward's families and of grad_input."""
    batch = problem.batch or 1
    for layer, place in products_of(problem, own):
        each = tiles.tile_for(layer, batch, place[3])
        yield layer, each, tiles.sizes_of(layer, each, batch, *place)


TINY = [
    problem
    for problem in layer_problems()
    if problem.name.split("/")[0] in {"rave_v2_stream", "diffusion_policy"}
    or problem.name in {"mimi_stream/up0", "mimi_stream/up1"}
]


@pytest.mark.parametrize("problem", [*LAYERS, *TINY], ids=lambda problem: problem.name)
@every
def test_parts_of_a_product_cover_all_stages_of_all_tiles_once(problem, own):
    batch = problem.batch or 1
    for layer, each, sizes in cut(problem.with_length(batch, min(problem.input_length, 300)), own):
        count, columns = tiles.parts_of(sizes), tiles.column_tiles(sizes, each, batch)
        blocks = tiles.blocks_of(sizes, each, batch)
        assert sorted(tiles.block_at(sizes, block) for block in range(blocks)) == list(
            itertools.product(range(layer.groups * layer.row_tiles), range(count), range(columns))
        )
        assert (count - 1) * sizes.part_stages < layer.stages <= count * sizes.part_stages
        shape = tiles.parts_shape(sizes, batch)
        if count == 1:
            assert math.prod(shape) == 0
            continue
        assert sizes.part_stages % tile.BLOCK_STAGES == 0
        assert blocks <= each.resident * tiles.MULTIPROCESSORS
        assert shape[0] * tile.BLOCK_STAGES >= layer.stages > (shape[0] - 1) * tile.BLOCK_STAGES
        assert shape[1:] == (layer.groups * layer.channels * layer.phases, batch, sizes.positions)
        assert math.prod(shape) * own.word_bytes <= tiles.WORKSPACE_BYTES


@pytest.mark.parametrize("problem", TINY, ids=lambda problem: problem.name)
def test_tiny_inputs_are_split(problem):
    for layer, each, sizes in cut(problem, arithmetic.FLOAT32):
        alone = tiles.blocks_of(sizes._replace(part_stages=layer.stages), each, 1)
        assert alone <= 64
        assert tiles.blocks_of(sizes, each, 1) >= min(3 * alone, tiles.MULTIPROCESSORS)


@pytest.mark.parametrize("problem", layer_problems(), ids=lambda problem: problem.name)
@every
def test_what_fills_a_chip_is_not_split(problem, own):
    for _, each, sizes in cut(problem, own):
        alone = tiles.blocks_of(sizes._replace(part_stages=sizes.stages), each, problem.batch or 1)
        if alone >= tiles.ENOUGH_BLOCKS:
            assert tiles.parts_of(sizes) == 1


@layers
@every
@pytest.mark.parametrize("length", [1, 100, 10**6, 10**9])
def test_parts_of_grad_weight_cover_all_stages_within_the_workspace(problem, own, length):
    sizes = weight_sizes_of(problem.with_length(3, length), own)
    parts = tiles.parts_of(sizes)
    assert sizes.stages * tile.WORDS * own.terms >= 3 * length
    assert (parts - 1) * sizes.part_stages < sizes.stages <= parts * sizes.part_stages
    assert sizes.part_stages % tile.BLOCK_STAGES == 0
    weights = problem.in_channels * problem.out_channels // problem.groups * problem.kernel_size
    assert parts == 1 or parts * weights * own.word_bytes <= tiles.WORKSPACE_BYTES


TILES = sorted({each for own in arithmetic.ALL for tiles_ in tile.tiles_of(own).values() for each in tiles_})


@pytest.mark.parametrize("each", TILES)
def test_threads_own_a_tile_once(each):
    first_row, first_column = tile.thread_place(each)(np.arange(each.threads))
    owned = [
        (row + r, column + c)
        for row, column in zip(first_row, first_column, strict=True)
        for r in each.row_steps
        for c in each.column_steps
    ]
    assert sorted(owned) == list(itertools.product(range(each.rows), range(each.columns)))


@pytest.mark.parametrize("each", TILES)
def test_shared_memory_suffices(each):
    """48 KiB without asking for more, beside what a block knows of its columns."""
    of_weights = tile.DEPTH * (each.input_room + tile.WORDS * each.pitch)
    word = 8 if each in tile.FMA_TILES[8][each.rows] and each not in tile.FMA_TILES[4][each.rows] else 4
    for room in (each.room, of_weights):
        assert room >= each.rows * each.pitch
        assert room * word + 2 * 8 * each.columns + 8 * tile.WORDS <= 48 * 2**10
    assert set(multiply.input_place(each)(*np.indices((tile.WORDS, each.rows))).ravel()) <= set(range(each.input_room))


# --- fragments --------------------------------------------------------------------------------------------------------

LANES = np.arange(fragments.WARP)
shapes = pytest.mark.parametrize("own", [own for own in arithmetic.ALL if own.tensor], ids=lambda own: own.name)


@shapes
def test_lanes_hold_every_element_of_an_operand_once(own):
    halves = own.terms == 2
    for count, depth, element in (
        (4 * own.terms, (16, 8 * own.terms), fragments.element_of_a),
        (2 * own.terms, (8 * own.terms, 8), fragments.element_of_b),
    ):
        held = {tuple(map(int, element(lane, i, halves))) for lane in LANES for i in range(count)}
        assert held == set(itertools.product(*map(range, depth)))
    held = {tuple(map(int, fragments.element_of_c(lane, i))) for lane in LANES for i in range(4)}
    assert held == set(itertools.product(range(16), range(8)))


@shapes
def test_words_lie_where_lanes_take_them_for_elements(own):
    """What the kernels read, in words, against the maps of the instruction."""
    halves = own.terms == 2
    for lane, i in itertools.product(range(fragments.WARP), range(4 * own.terms)):
        row, k = fragments.element_of_a(lane, i, halves)
        assert fragments.weight_place(k // own.terms, row, 16) == 4 * lane + i // own.terms
        assert k % own.terms == i % own.terms
    for lane, i in itertools.product(range(fragments.WARP), range(2 * own.terms)):
        k, column = fragments.element_of_b(lane, i, halves)
        assert (k // own.terms, k % own.terms) == (lane % 4 + i // own.terms * 4, i % own.terms)
        assert column == lane // 4
    for lane, i in itertools.product(range(fragments.WARP), range(4)):
        each = tile.Tile(16, 32, 2, 2, 4, True)
        row, column = tile.thread_place(each)(lane)
        assert fragments.element_of_c(lane, i) == (row + each.row_steps[i // 2], column + each.column_steps[i % 2])


@pytest.mark.parametrize("rows", [16, 64])
def test_packed_words_fill_a_stage(rows):
    t, row = np.indices((tile.WORDS, rows))
    assert sorted(fragments.weight_place(t, row, rows).ravel()) == list(range(tile.WORDS * rows))
    # and the words of a lane's registers lie side by side, as they are loaded
    assert [int(fragments.weight_place(t, r, rows)) for t, r in ((8, 1), (8, 9), (12, 1), (12, 9))] == [
        8 * rows + 16 + i for i in range(4)
    ]


# --- the emulator notices ---------------------------------------------------------------------------------------------


def emulate(function, *arguments, threads=32):
    emulator.Kernel(function, threads)[1, threads, None](*arguments)


@emulated
class TestEmulator:
    def test_a_missing_barrier(self):
        def neighbours(array, synchronise):
            thread = simt.cuda.threadIdx.x
            shared = simt.cuda.shared.array(32, np.float32)
            simt.ptx.store_element(shared, thread, thread, thread < 32)
            if synchronise:
                simt.cuda.syncthreads()
            simt.ptx.store_element(array, thread, simt.ptx.load_shared(shared, 31 - thread), thread < 32)

        array = np.zeros(32, np.float32)
        emulate(neighbours, array, True)
        np.testing.assert_array_equal(array, np.arange(32)[::-1])
        with pytest.raises(emulator.RaceError, match="reads what another wrote"):
            emulate(neighbours, array, False)

    def test_a_value_overwritten_while_others_may_still_read_it(self):
        def twice():
            thread = simt.cuda.threadIdx.x
            shared = simt.cuda.shared.array(32, np.float32)
            simt.ptx.store_element(shared, thread, thread, thread < 32)
            simt.cuda.syncthreads()
            simt.ptx.load_shared(shared, 31 - thread)
            simt.ptx.store_element(shared, thread, thread, thread < 32)

        with pytest.raises(emulator.RaceError, match="wrote or read"):
            emulate(twice)

    @pytest.mark.parametrize("groups", [0, 1])
    def test_a_copy_that_is_not_waited_for(self, groups):
        def copy(array):
            thread = simt.cuda.threadIdx.x
            shared = simt.cuda.shared.array(32, np.float32)
            simt.ptx.copy_sample(shared, thread, array, 0, 0, thread, thread < 32, thread < 30)
            simt.ptx.commit()
            simt.ptx.wait(groups)()
            simt.cuda.syncthreads()
            simt.ptx.store_sample(array, 0, 1, thread, simt.ptx.load_shared(shared, thread), thread < 32)

        array = np.ones((1, 2, 32), np.float32)
        if groups == 0:
            emulate(copy, array)
            np.testing.assert_array_equal(array[0, 1], [*[1] * 30, 0, 0])
        else:
            with pytest.raises(emulator.RaceError, match="before it is waited for"):
                emulate(copy, array)

    def test_memory_that_nobody_wrote(self):
        def read():
            simt.ptx.load_shared(simt.cuda.shared.array(32, np.float32), simt.cuda.threadIdx.x)

        with pytest.raises(emulator.RaceError, match="nobody wrote"):
            emulate(read)

    @shapes
    def test_a_product_of_tensor_cores(self, own):
        """Of 16 rows and 8 columns, out of shared memory and back."""

        def multiply(a, b, c):
            lane = simt.cuda.threadIdx.x
            words = a.view(np.float32).reshape(16, 8), b.view(np.float32).reshape(8, 8)
            low, high = (words[1][lane // 4, lane % 4 + t, None] for t in (0, 4))
            left = np.stack([words[0][lane // 4 + i % 2 * 8, lane % 4 + i // 2 * 4] for i in range(4)], axis=1)
            sums = simt.tensor.multiply_add(own.name)(np.ones((32, 4), np.float32), left, low, high)
            for i in range(4):
                c[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2] = sums[:, i]

        if own.name == "bfloat16":
            pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 is in ml_dtypes")
        dtype = {"tf32": np.float32}.get(own.name, own.name)
        rng = np.random.default_rng(1)
        a, b = (rng.integers(-8, 9, (rows, 8 * own.terms)).astype(dtype) for rows in (16, 8))
        c = np.zeros((16, 8), np.float32)
        emulate(multiply, a, b, c)
        np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32).T + 1)

    def test_an_operand_that_is_not_rounded(self):
        def multiply(word):
            words = np.full((32, 4), word, np.float32)
            simt.tensor.multiply_add("tf32")(np.zeros((32, 4), np.float32), words, words[:, :1], words[:, :1])

        emulate(multiply, 1 + 2.0**-10)
        with pytest.raises(RuntimeError, match="not rounded to tf32"):
            emulate(multiply, 1 + 2.0**-11)

    def test_copies_of_two_bytes(self):
        def copy(array):
            thread = simt.cuda.threadIdx.x
            shared = simt.cuda.shared.array(32, np.float32)
            simt.ptx.copy_sample(shared, thread, array, 0, 0, thread, thread < 32, thread < 32)

        with pytest.raises(RuntimeError, match="asynchronous"):
            emulate(copy, np.zeros((1, 1, 32), np.float16))

    def test_what_is_beyond_an_array(self):
        def load(array):
            thread = simt.cuda.threadIdx.x
            simt.ptx.load_element(array, thread, thread < 32)

        emulate(load, np.zeros(32))
        with pytest.raises(IndexError, match="beyond an array"):
            emulate(load, np.zeros(31))
