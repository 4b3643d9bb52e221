"""The tiled kernels on CUDA: on a GPU, or a block at a time on the emulator, which also looks for races.

test_operations.py holds all algorithms against the definition; here is what only the tiles can get wrong.
"""

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
from numba_ctconv import reference
from numba_ctconv.benchmark.workloads import Problem, layer_problems
from numba_ctconv.cuda import arrays, emulator, packing, simt, tiles
from numba_ctconv.geometry import families, plan

emulated = pytest.mark.skipif(not arrays.SIMULATED, reason="there is a GPU, which the emulator stands in for")
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def on_device(operands):
    return [None if array is None else cuda.to_device(array) for array in operands]


def forward(problem, operands, **options):
    x, w, b, dy = on_device(operands)
    out = cuda.to_device(np.full(dy.shape, np.nan, dy.dtype))
    nc.conv_transpose1d(x, w, b, **problem.forward_parameters, algorithm="tiled", **options, out=out)
    return out.copy_to_host()


def backward(problem, operands):
    """The gradients of input and weight."""
    x, w, _, dy = on_device(operands)
    out = nc.Gradients(*(cuda.to_device(np.full(a.shape, np.nan, a.dtype)) for a in (x, w)), None)
    nc.conv_transpose1d_backward(
        dy, x, w, **problem.backward_parameters, algorithm="tiled", needs=("input", "weight"), out=out
    )
    return [out.input.copy_to_host(), out.weight.copy_to_host()]


def expected_of(problem, operands):
    x, w, b, dy = operands
    keywords = {name: value for name, value in problem.parameters.items() if name != "output_padding"}
    return [
        reference.conv_transpose1d(x, w, b, **problem.forward_parameters),
        *reference.conv_transpose1d_backward(dy, x, w, **keywords)[:2],
    ]


def same_bits(results, expected):
    for result, exact in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result, exact.astype(result.dtype), strict=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problems(), st.sampled_from([np.float32, np.float64]))
def test_any_problem_equals_the_definition(problem, dtype):
    operands = problem.operands(dtype)
    same_bits([forward(problem, operands), *backward(problem, operands)], expected_of(problem, operands))


# More rows, terms and columns than a tile and a pipeline hold, none of them a multiple of anything.
LARGE = {
    "rows_terms_columns": Problem("rows", 2, 41, 47, 150, 4, stride=2, padding=1),
    "taps_beyond_a_stage": Problem("taps", 1, 3, 5, 70, 41, stride=2, padding=(7, -3)),
    "phases_beyond_a_tile": Problem("phases", 1, 2, 2, 9, 300, stride=150, padding=11),
    "groups": Problem("groups", 2, 24, 50, 40, 6, stride=3, groups=2, padding=2),
    "reach_beyond_a_tile": Problem("reach", 2, 5, 6, 160, 5, stride=2, dilation=90, padding=(100, 55)),
    "short_items": Problem("short", 40, 20, 34, 3, 4, stride=2, padding=1),
}
large = pytest.mark.parametrize("problem", LARGE.values(), ids=LARGE)


@large
@dtypes
def test_large_problems_equal_the_definition(problem, dtype):
    operands = problem.operands(dtype)
    same_bits([forward(problem, operands), *backward(problem, operands)], expected_of(problem, operands))


# --- bits -------------------------------------------------------------------------------------------------------------


@large
@pytest.mark.parametrize(("enough", "slack"), [(1, 8), (10**9, 8), (1, 10**9), (10**9, 10**9)])
def test_bits_depend_neither_on_the_tile_nor_on_how_samples_lie(monkeypatch, problem, enough, slack):
    """Which a call chooses by its batch and length, so that it must not matter."""
    operands = problem.operands(exact=False)
    usual = [forward(problem, operands), backward(problem, operands)[0]]
    monkeypatch.setattr(tiles, "ENOUGH_BLOCKS", enough)
    monkeypatch.setattr(tiles, "SLACK", slack)
    same_bits([forward(problem, operands), backward(problem, operands)[0]], usual)


def test_both_ways_for_samples_to_lie_are_taken():
    layer = tiles.forward_layer(plan(4, 2, 1), families(plan(4, 2, 1))[0], (64, 32, 4), 1, 4)
    (wide, narrow) = tiles.TILES[4, layer.tile_rows]
    enough = tiles.ENOUGH_BLOCKS * wide.columns
    for batch, positions, tile, spaced in ((1, enough, wide, 1), (1, 5, narrow, 1), (64, 5, narrow, 0)):
        assert tiles.tile_for(layer, 4, batch, positions) == tile
        assert tiles.sizes_of(layer, tile, batch, 0, 0, 0, positions).spaced == spaced


def test_an_item_has_the_same_bits_in_any_batch_and_a_chunk_in_any_stream():
    problem = LARGE["rows_terms_columns"]
    operands = problem.operands(exact=False)
    whole, gradient = forward(problem, operands), backward(problem, operands)[0]
    for n in range(2):
        alone = operands._replace(input=operands.input[n : n + 1], grad_output=operands.grad_output[n : n + 1])
        same_bits([forward(problem, alone), backward(problem, alone)[0]], [whole[n : n + 1], gradient[n : n + 1]])
    # samples 50 to 59 of the input reach outputs 100 to 119, and these reach nothing else than what 49 to 60 do
    _, w, b, _ = on_device(operands)
    chunk = nc.conv_transpose1d(
        cuda.to_device(operands.input[:, :, 49:61].copy()), w, b, stride=2, padding=(3, 3), algorithm="tiled"
    )
    np.testing.assert_array_equal(chunk.copy_to_host(), whole[:, :, 100:120])


@pytest.mark.parametrize("stages", [2, 8, 10**6])
def test_grad_weight_is_cut_where_its_sizes_say(monkeypatch, stages):
    """Exact sums don't show where the cuts are; the number of parts does."""
    problem = LARGE["rows_terms_columns"]
    operands = problem.operands()
    monkeypatch.setattr(tiles, "ENOUGH_BLOCKS", 1)
    monkeypatch.setattr(tiles, "PART_STAGES", stages)
    sizes = weight_sizes_of(problem, 4)
    whole = math.ceil(stages / tiles.BLOCK_STAGES) * tiles.BLOCK_STAGES
    assert tiles.parts_of(sizes) == math.ceil(sizes.stages / whole)
    same_bits(backward(problem, operands), expected_of(problem, operands)[1:])


# --- Inf and NaN ------------------------------------------------------------------------------------------------------

SPECIAL = Problem("special", 2, 3, 4, 40, 5, stride=2, padding=(3, 2))


@dtypes
@pytest.mark.filterwarnings("ignore:invalid value")
def test_inf_and_nan_reach_only_their_outputs(dtype):
    operands = SPECIAL.operands(dtype)
    operands.input[0, 0, [0, -1]], operands.input[1, 1, 20] = np.inf, np.nan
    operands.grad_output[0, 1, 0], operands.grad_output[1, 2, -1] = np.inf, np.nan
    exact = expected_of(SPECIAL, operands)
    assert all(np.isfinite(values).any() and not np.isfinite(values).all() for values in exact)
    same_bits([forward(SPECIAL, operands), *backward(SPECIAL, operands)], exact)


@dtypes
@pytest.mark.filterwarnings("ignore:invalid value")
def test_inf_in_a_weight_meets_no_absent_sample(dtype):
    """Tiles reach beyond both ends of an item, and the first and last outputs lack some of their taps."""
    operands = SPECIAL.operands(dtype)
    operands.weight[0, 0, :], operands.weight[2, 3, 1] = np.inf, np.nan
    operands.input[operands.input == 0] = 1
    exact = expected_of(SPECIAL, operands)
    assert all(np.isfinite(values).any() for values in exact)
    same_bits([forward(SPECIAL, operands), *backward(SPECIAL, operands)], exact)


# --- what a layer keeps -----------------------------------------------------------------------------------------------


def test_a_layer_packs_its_weight_once(monkeypatch):
    packed = []

    def start(kernel, *arguments):
        packed.append(kernel is packing.pack)
        return started(kernel, *arguments)

    started = arrays.start
    monkeypatch.setattr(arrays, "start", start)
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


# --- how products are cut ---------------------------------------------------------------------------------------------

LAYERS = [*layer_problems(core=True), *LARGE.values()]
layers = pytest.mark.parametrize("problem", LAYERS, ids=lambda problem: problem.name)


def products_of(problem, itemsize):
    """(layer, place) of forward's families and of grad_input."""
    own = plan(problem.kernel_size, problem.stride, problem.dilation)
    shape = (problem.in_channels, problem.out_channels // problem.groups, problem.kernel_size)
    crop = problem.padding[0] if isinstance(problem.padding, tuple) else problem.padding
    first = crop // own.stride
    positions = (crop + problem.output_length - 1) // own.stride - first + 1
    for family in families(own):
        if family.taps:
            layer = tiles.forward_layer(own, family, shape, problem.groups, itemsize)
            yield layer, (-family.shift, crop, first, positions)
    yield tiles.grad_input_layer(own, shape, problem.groups, itemsize), (-crop, 0, 0, problem.input_length)


def weight_sizes_of(problem, itemsize):
    own = plan(problem.kernel_size, problem.stride, problem.dilation)
    shape = (problem.in_channels, problem.out_channels // problem.groups, problem.kernel_size)
    tile = tiles.weight_tile(shape, problem.groups, itemsize)
    return tiles.weight_sizes(own, tile, shape, problem.groups, problem.batch or 1, problem.input_length, 0, itemsize)


@layers
@pytest.mark.parametrize("itemsize", [4, 8])
def test_stages_fit_their_room_and_columns_are_covered_once(problem, itemsize):
    batch = problem.batch or 1
    for layer, place in products_of(problem.with_length(batch, min(problem.input_length, 300)), itemsize):
        for tile in tiles.TILES[itemsize, layer.tile_rows]:
            sizes = tiles.sizes_of(layer, tile, batch, *place)
            assert 0 < sizes.stage_terms <= tiles.TERMS
            assert sizes.stages * sizes.stage_terms >= layer.term_channels * layer.taps
            planes = layer.step_in if sizes.spaced else 1
            assert sizes.stage_rows * planes * sizes.pitch <= tile.slab_room
            offsets = tiles.term_offset(sizes, tile.columns, np.arange(sizes.stage_terms))
            assert offsets.min() >= 0
            assert offsets.max() + tile.columns <= tile.slab_room
            assert tile.threads % sizes.row_lanes == 0
            found = [
                (item, position)
                for column_tile in range(tiles.column_tiles(sizes, tile, batch))
                for item, position in zip(
                    *tiles.column_at(sizes, tile.columns, batch, column_tile, np.arange(tile.columns)), strict=True
                )
                if item >= 0
            ]
            assert found == list(itertools.product(range(batch), range(place[3])))
            rows = layer.channels * layer.phases
            assert (layer.row_tiles - 1) * layer.tile_rows < rows <= layer.row_tiles * layer.tile_rows


@layers
@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("length", [1, 100, 10**6, 10**9])
def test_parts_of_grad_weight_cover_all_stages_within_the_workspace(problem, itemsize, length):
    sizes = weight_sizes_of(problem.with_length(3, length), itemsize)
    parts = tiles.parts_of(sizes)
    assert (parts - 1) * sizes.part_stages < sizes.stages <= parts * sizes.part_stages
    assert sizes.part_stages % tiles.BLOCK_STAGES == 0
    weights = problem.in_channels * problem.out_channels // problem.groups * problem.kernel_size
    assert parts == 1 or parts * weights * itemsize <= tiles.WORKSPACE_BYTES


@pytest.mark.parametrize("tile", sorted({tile for own in tiles.TILES.values() for tile in own}))
def test_threads_own_a_tile_once(tile):
    thread = np.arange(tile.threads)
    down, across = thread // tile.across * tile.thread_rows, thread % tile.across
    owned = [
        (d + r, a + c * tile.across)
        for d, a in zip(down, across, strict=True)
        for r in range(tile.thread_rows)
        for c in range(tile.thread_columns)
    ]
    assert sorted(owned) == list(itertools.product(range(tile.rows), range(tile.columns)))


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

    def test_what_is_beyond_an_array(self):
        def load(array):
            thread = simt.cuda.threadIdx.x
            simt.ptx.load_element(array, thread, thread < 32)

        emulate(load, np.zeros(32))
        with pytest.raises(IndexError, match="beyond an array"):
            emulate(load, np.zeros(31))
