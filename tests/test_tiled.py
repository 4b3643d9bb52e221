"""The tiled products: layouts and tiles as pure functions, and what their bits may depend on."""

import itertools

import numba
import numpy as np
import pytest
from calling import call
from hypothesis import given, settings
from hypothesis import strategies as st

import numba_ctconv as nc
from numba_ctconv import reference
from numba_ctconv.benchmark.workloads import layer_problems
from numba_ctconv.cpu import (
    asking,
    blocks,
    column_tiles,
    layout,
    microkernels,
    panels,
    target,
    tiled,
    tiled_weight,
    weight_layout,
)
from numba_ctconv.geometry import plan


@pytest.fixture
def change(monkeypatch):
    """Set what decides the layout of a call, and forget the calls that were laid out without."""

    def set_and_forget(*arguments):
        monkeypatch.setattr(*arguments)
        forget()

    def forget():
        blocks.forward_calls.cache_clear()
        blocks.grad_input_calls.cache_clear()

    yield set_and_forget
    monkeypatch.undo()
    forget()


@pytest.fixture
def taken(change):
    """The sizes of the calls that are laid out from now on."""
    sizes = []

    def counted(*arguments, size=blocks.sizes_of):
        sizes.append(size(*arguments))
        return sizes[-1]

    change(blocks, "sizes_of", counted)
    return sizes


@pytest.mark.parametrize("name", ["hifigan_v1/up1", "cosyvoice2_hift/up1", "deep_tasnet_dilated/dec_d8", "wavegan/up0"])
def test_chunks_of_time_have_the_bits_of_the_whole(name):
    """A stretch of output from the inputs that reach it: what streaming gives, bit by bit."""
    layer = next(p for p in layer_problems(core=True) if p.name == name).with_length(1, 150)
    layer = layer.shrunk(40, 150)
    x, w, b, _ = layer.operands(np.float32, exact=False)
    parameters = {"stride": layer.stride, "groups": layer.groups, "dilation": layer.dilation}
    whole = nc.conv_transpose1d(x, w, b, padding=(0, 0), **parameters)
    reach = plan(layer.kernel_size, layer.stride, layer.dilation).shift(layer.kernel_size - 1)
    for first, size in ((reach, 1), (reach + 1, 2), (60, 17), (100, 50)):
        chunk = x[..., first - reach : first + size]
        crop = (reach * layer.stride, 0)
        part = nc.conv_transpose1d(chunk, w, b, padding=crop, output_size=size * layer.stride, **parameters)
        np.testing.assert_array_equal(part, whole[..., first * layer.stride : (first + size) * layer.stride])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(1, 40),
    st.integers(1, 30),
    st.sampled_from([4, 8]),
)
def test_a_layout_covers_every_tap_once(kernel_size, stride, dilation, channels, row_channels, itemsize):
    layer = plan(kernel_size, stride, dilation)
    layouts = layout.forward_layouts(layer, channels, row_channels, itemsize)
    seen = []
    for own in layouts:
        assert own.rows % own.tile_phases == 0
        assert own.vectors * (own.rows + 1) < target.vector_registers() or own.vectors == 1
        assert own.row_tiles * own.rows >= row_channels * len(own.phases)
        for phase, first in zip(own.phases, own.first_taps, strict=True):
            taps = [int(first) + m * own.tap_step for m in range(own.taps)]
            seen += taps
            for m, k in enumerate(taps):
                assert k * dilation % stride == phase
                for slab in (own, own.apart or own):
                    plane = slab.planes[slab.term_rows[m] % len(slab.planes)]
                    assert plane + slab.term_starts[m] - slab.lead == -(k * dilation // stride)
    assert sorted(seen) == list(range(kernel_size))


@pytest.mark.parametrize("rows", [1, 5, 8])
@pytest.mark.parametrize("terms", [0, 1, 31, 32, 33, 100])
def test_a_tile_is_the_product_of_shifted_rows(rows, terms):
    size, lanes = 4, target.vector_bytes() // 4
    rng = np.random.default_rng(terms)
    panel = rng.integers(-4, 5, (terms, rows)).astype(np.float32)
    slab = rng.integers(-4, 5, 700).astype(np.float32)
    offsets = rng.integers(0, 600 - 2 * lanes, terms)
    start = rng.integers(-4, 5, rows).astype(np.float32)
    columns = 2 * lanes
    expected = -start[:, None] + panel.T @ slab[offsets[:, None] + np.arange(columns)]
    nowhere = np.full(4, 8)  # what is asked for need not exist
    for adds, ahead in itertools.product((0, 1), (0, nowhere.ctypes.data)):
        sums, out = np.full(rows * columns, np.nan, np.float32), np.ones((rows, columns), np.float32)
        address = microkernels.tiles(size, lanes, rows, 2, 1, 1, adds=bool(adds))[1]
        arrays = (panel, slab, offsets)
        pointers = [a.ctypes.data for a in arrays]
        call(address, *pointers, terms, 32, start.ctypes.data, sums.ctypes.data, out.ctypes.data, columns, ahead)
        np.testing.assert_array_equal(out, expected + adds)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel_size", [1, 2])
@pytest.mark.parametrize("channels", [(2, 1), (2, 4), (16, 3)])
def test_a_block_of_several_items_is_not_read_from_one(dtype, kernel_size, channels):
    """Of much longer inputs than outputs, where the columns of an item are fewer than its samples."""
    rng = np.random.default_rng(0)
    for length in range(10, 101, 9):
        x = rng.integers(-4, 5, (3, channels[0], length)).astype(dtype)
        w = rng.integers(-4, 5, (*channels, kernel_size)).astype(dtype)
        for cut in range(0, 2 * length - 3, 3):
            for crops in ((0, cut), (cut, 0)):
                y = nc.conv_transpose1d(x, w, stride=2, padding=crops, algorithm="tiled")
                np.testing.assert_array_equal(y, reference.conv_transpose1d(x, w, stride=2, padding=crops))


@numba.njit
def listed(list_at, row_at, step, rows, size, tiles, blocks):
    """What so many tiles of so many blocks of terms take of the list of some rows: where it lies in the list."""
    count = asking.list_rows(list_at, 0, row_at, step, rows, size)
    asked = asking.asked_by_last(list_at, count, tiles, blocks)
    return [asking.asked_by(number, asked) for number in range(tiles)]


@pytest.mark.parametrize("tiles", [2, 3, 10])
def test_the_last_tiles_ask_once_for_all_lines_of_the_next_rows(tiles):
    """Three rows of a few bytes more than two addresses stand for, by tiles of four blocks."""
    memory = np.zeros(9 + 4, np.int64)
    list_at, row_at, step, blocks = memory.ctypes.data, 10**6, -5000, 4
    taken = listed(list_at, row_at, step, 3, 2 * asking.BYTES_ASKED + 8, tiles, blocks)
    assert taken[:-3] == [0] * (tiles - 3)
    addresses = [memory[(at - list_at) // 8 :][:blocks] for at in taken[-3:]]
    every = [row_at + row * step + k * asking.BYTES_ASKED for row in range(3) for k in range(3)]
    assert np.concatenate(addresses).tolist() == (every + [list_at] * 3)[: tiles * blocks]


def test_tiles_ask_for_nothing_where_nothing_is_listed():
    memory = np.zeros(1, np.int64)
    assert listed(memory.ctypes.data, 10**6, 64, 0, 64, 3, 2) == [0, 0, 0]
    assert memory[0] == 0


@pytest.mark.parametrize("problem", layer_problems(core=True), ids=lambda p: p.name)
def test_accuracy_of_real_layers(problem):
    """The root mean square error of a layer, in units of the last place of its outputs: partial sums keep it small."""
    short = problem.with_length(1, min(problem.input_length, 24))
    x, w, b, _ = short.operands(np.float32, exact=False)
    w = w / np.float32(np.sqrt(problem.in_channels * problem.kernel_size))
    y = nc.conv_transpose1d(x, w, b, **short.forward_parameters)
    rng = np.random.default_rng(0)
    at = np.stack([rng.integers(0, n, 3000) for n in y.shape], 1)
    exact = reference.conv_transpose1d(x, w, b, **short.forward_parameters, at=at)
    error = np.sqrt(np.mean((y[tuple(at.T)] - exact) ** 2)) / np.sqrt(np.mean(exact**2))
    assert error < 4 * np.finfo(np.float32).eps


def test_a_layer_packs_its_weight_once():
    layer = nc.ConvTranspose1d(16, 8, 4, stride=2, padding=1)
    x = np.ones((1, 16, 9), np.float32)
    y = layer(x)
    ((key, packed),) = layer._kept.items()
    layer(x)
    assert layer._kept[key] is packed
    layer.backward(y, x)
    assert [pack for pack, *_ in layer._kept] == [panels.of_forward, panels.of_grad_input]
    layer.weight = layer.weight * np.float32(2)
    assert not layer._kept
    np.testing.assert_allclose(layer(x) - layer.bias[:, None], 2 * (y - layer.bias[:, None]), rtol=1e-5, atol=1e-6)


def test_what_is_kept_serves_only_the_parameters_it_was_packed_for():
    layer = nc.ConvTranspose1d(16, 8, 4, stride=2, padding=1)
    x = np.ones((1, 16, 9), np.float32)
    layer(x)
    layer.stride = 3
    np.testing.assert_array_equal(layer(x), nc.conv_transpose1d(x, layer.weight, layer.bias, stride=3, padding=1))


@pytest.mark.parametrize("length", [3, 50, 500])
@pytest.mark.parametrize("row_channels", [8, 700, 2048])
@pytest.mark.parametrize("kernel_size", [4, 25, 4096, 20_000])
def test_workers_do_not_choose_the_algorithm_of_grad_weight(kernel_size, row_channels, length):
    """A layer too large for the tiled product is so for any number of threads: they must not change its bits."""
    for stride in (1, 4):
        own = plan(kernel_size, stride, 1)
        shape = weight_layout.WeightProblem(1, 2, length, row_channels, 256, 1, 0, 4)
        calls = [weight_layout.weight_call(own, shape._replace(workers=n)) for n in (1, 2, 3, 4, 8, 64)]
        assert len({found is None for found in calls}) == 1
        if kernel_size <= 4096:
            assert calls[0] is not None
        if (kernel_size, stride, length) == (20_000, 1, 500):
            assert calls[0] is None
        for found in calls:
            if found is not None:
                assert (found.sizes.scratch_size + found.sums_size) * 4 < 8e6
                assert found.sizes.stretch == calls[0].sizes.stretch


@pytest.mark.parametrize(("row_channels", "channels"), [(128, 64), (64, 32), (8, 400), (512, 256), (30, 70)])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_workers_have_even_parts_of_grad_weight(row_channels, channels, workers):
    """Of 64 channels, blocks of two strips would have 48 and 16: by whole blocks, one would do three times as much."""
    problem = weight_layout.WeightProblem(1, 16, 1240, row_channels, channels, workers, 1, 4)
    call = weight_layout.weight_call(plan(4, 2, 1), problem)
    own, width = call.layout, call.sizes.strips * call.sizes.strip
    rows, columns = -(-row_channels // own.rows), len(own.planes)
    vectors = [-(-min(width, channels - first) * columns // own.lanes) for first in range(0, channels, width)]
    work, parts = rows * sum(vectors), []
    for worker in range(workers):
        before, part = 0, 0
        for each in vectors:
            begin, end, before = tiled_weight.share_of.py_func(rows, each, before, work, worker, workers)
            part += (end - begin) * each
        parts.append(part)
    assert sum(parts) == work
    assert max(parts) <= work / workers + max(vectors)
    assert call.sizes.waiting <= rows


def test_a_layer_whose_planes_and_shifts_hardly_meet_takes_little_to_lay_out():
    """Each of 50,000 taps has a plane and a shift of its own: a table of all pairs would take 20 GB."""
    own = plan(50_000, 49_999, 49_998)
    assert weight_layout.by_shifts(own, 8, 8, 4) is None
    assert weight_layout.weight_call(own, weight_layout.WeightProblem(1, 1, 500, 8, 8, 1, 0, 4)) is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_tiles_and_copied_rows_give_the_same_bits(dtype):
    """Of many channels, a long input is read where it is by rows of tiles, and a short one is copied first."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 96, 400)).astype(dtype), rng.standard_normal((96, 64, 2)).astype(dtype)
    own, reads = plan(2, 2, 1), []
    (family,) = layout.forward_layouts(own, 96, 64, x.itemsize)
    assert family.many_streams
    short = (blocks.LEAST_ROW - 1) * family.vectors * family.lanes
    for length in (400, short):
        part = x[..., :length]
        problem = blocks.Problem(1, part.shape, part.strides, True, True, 0, 0, 0, length)
        sizes = blocks.sizes_of(family, problem)
        reads.append((sizes.in_place, sizes.row_sums > 0))
    assert reads == [(1, True), (0, False)]
    whole = nc.conv_transpose1d(x, w, stride=2)
    np.testing.assert_array_equal(nc.conv_transpose1d(x[..., :short], w, stride=2), whole[..., : 2 * short])


@pytest.mark.parametrize(("channels", "kernel_size"), [(1, 25), (128, 16), (2, 8)])
def test_taps_lie_side_by_side_where_channels_are_few(channels, kernel_size):
    """One channel and four planes would leave three quarters of 16 lanes empty, for each of seven shifts."""
    own = weight_layout.weight_layout(
        plan(kernel_size, 4, 1), weight_layout.WeightProblem(1, 2, 500, 64, channels, 1, 0, 4)
    )
    assert own is not None
    assert (len(own.shifts) == 1) == (4 * channels < own.lanes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [{"stride": 8, "padding": 4, "groups": 2}, {"dilation": 5, "padding": (-3, 40)}])
def test_rows_that_are_read_in_place_give_the_bits_of_rows_that_are_packed(change, dtype, parameters):
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((2, 6, 901)).astype(dtype), rng.standard_normal((6, 3, 16)).astype(dtype)
    read = []

    def counted(*arguments, decide=blocks.reads_in_place):
        read.append(decide(*arguments))
        return read[-1]

    change(blocks, "reads_in_place", counted)
    change(blocks, "IN_PLACE_BYTES", 1)  # narrow blocks, of which most touch no end of an item
    in_place = nc.conv_transpose1d(x, w, algorithm="tiled", **parameters)
    change(layout, "MOST_IN_PLACE", 0)
    packed = nc.conv_transpose1d(x, w, algorithm="tiled", **parameters)
    assert read == [True, False]
    np.testing.assert_array_equal(in_place, packed)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [{"stride": 4, "padding": 3, "groups": 2}, {"dilation": 5, "padding": (-3, 40)}])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_ends_of_items_alone_are_copied(change, taken, numba_threads, dtype, parameters, threads):
    """Blocks inside each item are read in place, as many as there are, and shared out with the two at its ends."""
    if threads not in numba_threads.counts:
        pytest.skip(f"Numba has no {threads} threads here")
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((3, 16, 1207)).astype(dtype), rng.standard_normal((16, 3, 7)).astype(dtype)
    numba_threads(threads)
    in_place = nc.conv_transpose1d(x, w, algorithm="tiled", **parameters)
    change(blocks, "LEAST_COPIED_BYTES", 1 << 40)
    even = nc.conv_transpose1d(x, w, algorithm="tiled", **parameters)
    inner = [(own.inner_begin, own.inner_end, own.width) for own in taken]
    families = len(inner) // 2
    for begin, end, width in inner[:families]:
        assert 0 < begin < begin + width < end <= taken[0].positions - begin
    assert {end for _, end, _ in inner[families:]} == {0}
    np.testing.assert_array_equal(in_place, even)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [{"stride": 8, "padding": 4, "groups": 2}, {"dilation": 5, "padding": (-3, 40)}])
def test_rows_of_tiles_give_the_bits_of_tiles_by_themselves(change, taken, dtype, parameters):
    """Many rows that are read in place are summed up a block of terms after the other, by all tiles of a row."""
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((2, 98, 901)).astype(dtype), rng.standard_normal((98, 3, 16)).astype(dtype)
    bias = rng.standard_normal(3 * parameters.get("groups", 1)).astype(dtype)
    change(target, "SUMS_BYTES", 5000)  # narrow blocks, of which most touch no end of an item
    in_rows = nc.conv_transpose1d(x, w, bias, algorithm="tiled", **parameters)
    change(layout, "MOST_STREAMS", 98)
    by_themselves = nc.conv_transpose1d(x, w, bias, algorithm="tiled", **parameters)
    assert [own.in_place for own in taken] == [1, 1]
    assert taken[0].row_sums * dtype().itemsize <= 5000 < 901 * dtype().itemsize * taken[0].rows
    assert taken[0].row_sums > 0 == taken[1].row_sums
    np.testing.assert_array_equal(in_rows, by_themselves)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [{"stride": 8, "padding": 4, "groups": 2}, {"dilation": 5, "padding": (-3, 40)}])
def test_rows_of_few_terms_give_the_bits_of_tiles_by_themselves(change, taken, dtype, parameters):
    """One block of terms, of which the tiles of a row are called together."""
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((2, 4, 901)).astype(dtype), rng.standard_normal((4, 5, 8)).astype(dtype)
    bias = rng.standard_normal(5 * parameters.get("groups", 1)).astype(dtype)
    in_rows = nc.conv_transpose1d(x, w, bias, algorithm="tiled", **parameters)
    change(layout.Layout, "few_terms", False)
    by_themselves = nc.conv_transpose1d(x, w, bias, algorithm="tiled", **parameters)
    assert [own.row_sums for own in taken] == [1, 0]
    np.testing.assert_array_equal(in_rows, by_themselves)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("padding", [(11, 10), (0, 0), (-9, 40), (37, -5), (60, 0)])
def test_items_close_together_have_the_bits_of_items_apart(change, dtype, padding):
    """Neighbours in a batch share the zeros that the one's shifts reach after its end and the other's before it."""
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((9, 6, 11)).astype(dtype), rng.standard_normal((6, 4, 25)).astype(dtype)
    parameters = {"stride": 4, "padding": padding, "groups": 2}

    def results():
        y = nc.conv_transpose1d(x, w, algorithm="tiled", **parameters)
        backward = nc.conv_transpose1d_backward(np.cos(y), x, w, needs=("input",), algorithm="tiled", **parameters)
        return y, backward.input

    close = results()
    change(blocks, "columns_between_items", lambda own, *call: own.lead + call[-1] + own.tail)
    for one, other in zip(close, results(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kernel_size", "length"), [(25, 11), (16, 19), (20, 40)])
@pytest.mark.parametrize("parameters", [{"stride": 4, "padding": (11, 3)}, {"stride": 8, "groups": 2}, {"dilation": 3}])
def test_a_row_for_each_tap_gives_the_bits_of_rows_that_taps_share(change, dtype, kernel_size, length, parameters):
    """So nothing lies between items; a batch of short ones takes it, where the copies cost less than that."""
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((7, 6, length)).astype(dtype), rng.standard_normal((6, 5, kernel_size)).astype(dtype)
    shared = []

    def counted(own, problem, size=blocks.sizes_of):
        shared.append(own.lead + own.tail > 0)
        return size(own, problem)

    def results(cost):
        shared.clear()
        change(blocks, "COPY_COST", cost)
        y = nc.conv_transpose1d(x, w, algorithm="tiled", **parameters)
        backward = nc.conv_transpose1d_backward(np.cos(y), x, w, needs=("input",), algorithm="tiled", **parameters)
        return y, backward.input

    change(blocks, "sizes_of", counted)
    change(blocks, "BLOCK_COST", 0)
    apart = results(-1e9)
    assert not any(shared)
    together = results(1e9)
    assert all(shared)
    for one, other in zip(apart, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_short_items_of_a_batch_have_a_row_for_each_tap(change):
    """Of which each meets many rows; but not alone, nor where they are long, nor where few rows would meet a copy."""
    taken = []

    def counted(own, problem, size=blocks.sizes_of):
        taken.append(own.lead + own.tail == 0)
        return size(own, problem)

    def apart(batch, length, channels):
        x, w = np.ones((batch, 3, length), np.float32), np.ones((3, channels, 25), np.float32)
        nc.conv_transpose1d(x, w, stride=5, padding=10)
        return taken.pop()

    change(blocks, "sizes_of", counted)
    assert apart(40, 16, 64)
    assert not apart(1, 16, 64)
    assert not apart(40, 1000, 64)
    assert not apart(40, 16, 1)


def test_items_stand_as_close_as_their_shifts_let_them():
    """Twice the stride wide, a kernel needs one sample of nothing between two items."""
    (own,) = layout.forward_layouts(plan(16, 8, 1), 4, 4, 4)
    assert blocks.columns_between_items(own, 32, 0, 0, 33) == 33
    assert blocks.columns_between_items(own, 32, 0, 1, 31) == 32  # all that is cut off at either end is a neighbour's
    (wide,) = layout.forward_layouts(plan(28, 4, 1), 4, 4, 4)
    assert blocks.columns_between_items(wide, 16, 0, 3, 16) == 19
    assert blocks.columns_between_items(wide, 16, 0, 0, 22) == 22


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("parameters", [{"stride": 4, "padding": 3, "groups": 2}, {"stride": 3}, {"dilation": 2}])
def test_panels_that_a_call_makes_as_it_goes_have_the_bits_of_kept_ones(change, dtype, parameters):
    """A function call packs some tiles at a time, right before it uses them; a layer keeps all of them."""
    rng = np.random.default_rng(7)
    length = target.vector_bytes() // dtype().itemsize // 2 + 1  # few columns
    x, w = rng.standard_normal((1, 22, length)).astype(dtype), rng.standard_normal((22, 31, 7)).astype(dtype)
    taken = []

    def counted(*arguments, size=blocks.sizes_of):
        taken.append(size(*arguments))
        return taken[-1]

    def results():
        y = nc.conv_transpose1d(x, w, algorithm="tiled", **parameters)
        backward = nc.conv_transpose1d_backward(np.cos(y), x, w, needs=("input",), algorithm="tiled", **parameters)
        return y, backward.input

    change(blocks, "sizes_of", counted)
    in_blocks = results()
    calls = len(taken)
    assert any(own.block_channels > 0 for own in taken)
    change(layout, "MOST_BLOCK_TAPS", 0)
    change(blocks, "PANELS_BYTES", 4 * 22 * 7 * 8 * dtype().itemsize)  # a few tiles of many
    made = results()
    change(blocks, "MOST_BLOCKS_REMADE", 0)
    for one, other, third in zip(made, results(), in_blocks, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(third, other)
    assert all(own.together > 0 and own.block_channels == 0 for own in taken[calls : 2 * calls])
    assert not any(own.together or own.block_channels for own in taken[2 * calls :])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kernel_size", "stride"), [(8, 4), (12, 6), (4, 2), (6, 2), (5, 1), (7, 3), (24, 12)])
def test_short_inputs_give_the_bits_of_long_ones(dtype, kernel_size, stride):
    """Few columns, one vector and both, of tiles that no group of several divides; packed before or by blocks."""
    rng = np.random.default_rng(9)
    for channels, row_channels in ((40, 37), (33, 7), (50, 1)):
        layer = nc.ConvTranspose1d(channels, row_channels, kernel_size, stride, dtype=dtype)
        x = rng.standard_normal((1, channels, 70)).astype(dtype)
        whole = layer(x)
        for length in (1, 3, 5, 8, 12, 16, 20, 25):
            short = layer(x[..., :length])
            np.testing.assert_array_equal(short[..., : length * stride], whole[..., : length * stride])
            own = nc.conv_transpose1d(x[..., :length], layer.weight, layer.bias, stride)
            np.testing.assert_array_equal(own, short)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kernel_size", "parameters", "paired"), [
    (8, {"stride": 4, "padding": 2}, {2, 4, 8}), (3, {"stride": 2, "groups": 2}, {2, 4, 8}),
    (2, {"dilation": 3}, {2, 6}), (6, {"stride": 2}, set()),
    (4, {"stride": 2, "padding": (0, 3)}, set()),  # the last column is cut off, and the first one
    (4, {"stride": 2, "padding": (2, 0)}, set()),
])  # fmt: skip
def test_few_columns_skip_what_pairs_of_taps_meet_beyond_an_item(change, taken, dtype, kernel_size, parameters, paired):
    """By panels that are there and by those of a few channels, and whatever samples are: with the bits of all terms."""
    rng = np.random.default_rng(11)
    steps = parameters.get("stride", 1), parameters.get("dilation", 1)
    most = layout.forward_layouts(plan(kernel_size, *steps), 40, 37, dtype().itemsize)[0].few_columns
    w = rng.standard_normal((40, 37, kernel_size)).astype(dtype)
    w[:, 1::2] *= 3 * np.finfo(dtype).smallest_subnormal  # whose products may add up to 0 or -0
    layer = nc.ConvTranspose1d(40, 37 * parameters.get("groups", 1), kernel_size, dtype=dtype, bias=False, **parameters)
    layer.weight = w
    results = []
    for skips in (True, False):
        if not skips:
            change(column_tiles, "PAIRED_COLUMNS", ())
        for length in range(1, 11):
            x = 0.1 * np.random.default_rng(length).standard_normal((1, 40, length)).astype(dtype)
            taken.clear()
            results.append(nc.conv_transpose1d(x, w, algorithm="tiled", **parameters).view(np.uint8))
            np.testing.assert_array_equal(layer(x).view(np.uint8), results[-1])
            x[0, length, -1] = np.inf
            results.append(nc.conv_transpose1d(x, w, algorithm="tiled", **parameters))
            expected = skips and length in paired and length < most
            assert max(own.few_paired for own in taken) == int(expected), length  # of the families of phases
    for one, other in zip(results[:20], results[20:], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("length", [1, 5, 14, 20])
@pytest.mark.parametrize("place", [0, 2000, -1])
def test_a_weight_that_is_not_finite_is_found_by_blocks(length, place):
    """Or an input, which leaves the tiles to it."""
    rng = np.random.default_rng(10)
    x = rng.integers(-4, 5, (1, 50, length)).astype(np.float32)
    w = rng.integers(-4, 5, (50, 13, 4)).astype(np.float32)
    w.flat[place] = np.inf
    for weight in (w, np.where(np.isinf(w), np.float32(3), w)):
        y = nc.conv_transpose1d(x, weight, stride=2, padding=1)
        np.testing.assert_array_equal(y, reference.conv_transpose1d(x, weight, stride=2, padding=1))
        x[0, 7, length // 2] = np.nan


@pytest.mark.parametrize("place", [0, 3000, -1])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_weight_that_is_not_finite_is_found_while_panels_are_made(place, value):
    rng = np.random.default_rng(8)
    x = rng.integers(-4, 5, (2, 22, 5)).astype(np.float32)
    w = rng.integers(-4, 5, (22, 31, 7)).astype(np.float32)
    w.flat[place] = value
    parameters = {"stride": 3, "padding": 2}
    y = nc.conv_transpose1d(x, w, algorithm="tiled", **parameters)
    np.testing.assert_array_equal(y, reference.conv_transpose1d(x, w, **parameters))
    dy = rng.integers(-4, 5, y.shape).astype(np.float32)
    own = nc.conv_transpose1d_backward(dy, x, w, needs=("input",), algorithm="tiled", **parameters)
    expected = reference.conv_transpose1d_backward(dy, x, w, **parameters)
    np.testing.assert_array_equal(own.input, expected[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("stride", "dilation", "padding"), [
    (3, 1, (0, 0)), (2, 1, (150, 40)), (1, 2, (0, 700)), (1, 1, (600, 700)),
])  # fmt: skip
@pytest.mark.parametrize("length", [1, 13, 40, 150])
def test_taps_that_reach_far_beyond_an_input(dtype, stride, dilation, padding, length):
    """Most terms meet no sample in a tile's columns and are left out, which changes no bit."""
    rng = np.random.default_rng(1)
    w, b = rng.integers(-4, 5, (7, 5, 1337)).astype(dtype), rng.integers(-4, 5, 5).astype(dtype)
    x = rng.integers(-4, 5, (2, 7, length)).astype(dtype)
    parameters = {"stride": stride, "dilation": dilation}
    np.testing.assert_array_equal(
        nc.conv_transpose1d(x, w, b, padding=padding, **parameters),
        reference.conv_transpose1d(x, w, b, padding=padding, **parameters),
    )
    parameters["padding"] = padding
    dy = rng.integers(-4, 5, nc.conv_transpose1d(x, w, **parameters).shape).astype(dtype)
    own = nc.conv_transpose1d_backward(dy, x, w, needs=("input",), algorithm="tiled", **parameters).input
    np.testing.assert_array_equal(own, reference.conv_transpose1d_backward(dy, x, w, **parameters)[0])
    del parameters["padding"]
    w, x = (rng.standard_normal(a.shape).astype(dtype) for a in (w, x))
    longer = np.concatenate([x, rng.standard_normal((2, 7, 1500)).astype(dtype)], axis=2)
    short, whole = (nc.conv_transpose1d(a, w, b, **parameters) for a in (x, longer))
    np.testing.assert_array_equal(short[..., : length * stride], whole[..., : length * stride])


@pytest.mark.parametrize("length", [5, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_phases_that_no_tap_reaches_hold_the_bias(dtype, length):
    """Of a few channels and of many, which are read in place by rows of tiles."""
    for channels in (3, 260):
        x, w = np.ones((1, channels, length), dtype), np.ones((channels, 14, 3), dtype)
        out = np.full((1, 14, (length - 1) * 8 + 3), np.nan, dtype)
        nc.conv_transpose1d(x, w, np.arange(14, dtype=dtype), stride=8, algorithm="tiled", out=out)
        for phase in range(8):
            expected = np.arange(14) + (channels if phase < 3 else 0)
            assert (out[0, :, phase::8] == expected[:, None]).all()


@pytest.mark.parametrize(("kernel_size", "stride"), [(2, 2), (5, 5), (7, 7), (9, 3)])
def test_panels_of_neighbouring_tiles_do_not_touch(kernel_size, stride):
    """A channel's weights may be fewer than a vector holds, which is stored whole but at the end of a panel."""
    rng = np.random.default_rng(2)
    layer = nc.ConvTranspose1d(130, 26, kernel_size, stride, bias=False)
    layer.weight = rng.integers(-4, 5, layer.weight.shape).astype(np.float32)
    for length in (1, 4, 33):
        x = rng.integers(-4, 5, (1, 130, length)).astype(np.float32)
        expected = reference.conv_transpose1d(x, layer.weight, stride=stride)
        np.testing.assert_array_equal(layer(x), expected)
        np.testing.assert_array_equal(nc.conv_transpose1d(x, layer.weight, stride=stride), expected)


@pytest.mark.parametrize(("channels", "row_channels", "batch", "length", "groups"), [
    (768, 384, 1, 423, 1),  # two blocks, of 240 columns and of 184
    (96, 40, 2, 600, 3), (8, 5, 3, 2000, 1), (512, 256, 1, 2, 1), (16, 1, 1, 50, 2),
])  # fmt: skip
@pytest.mark.parametrize("workers", [1, 2, 3, 5, 64])
def test_workers_share_all_rows_of_all_blocks_evenly(
    monkeypatch, channels, row_channels, batch, length, groups, workers
):
    for name in ("cut_of", "columns_of", "share_of"):  # which only compiled code calls otherwise
        monkeypatch.setattr(tiled, name, getattr(tiled, name).py_func)
    (family,) = layout.forward_layouts(plan(16, 8, 1), channels, row_channels, 4)
    source = np.empty((batch, channels * groups, length), np.float32)
    problem = blocks.Problem(groups, source.shape, source.strides, True, True, 0, 0, 0, length + 1)
    sizes = blocks.sizes_of(family, problem)
    cut = tiled.cut_of(source, sizes, family.row_tiles, workers)
    assert cut.units == -(-family.row_tiles // cut.unit)
    shares, done = np.zeros(workers, int), np.zeros(workers, int)
    columns_met = 0
    for block in range(cut.blocks):
        *_, columns = tiled.columns_of(block, cut, sizes)
        vectors = -(-columns // family.lanes)
        parts = [tiled.share_of(cut.units, vectors, done[k], cut.work, k, workers) for k in range(workers)]
        assert parts[0][0] == 0
        assert parts[-1][1] == cut.units
        assert all(one[1] == other[0] for one, other in itertools.pairwise(parts))
        done[:] = [after for *_, after in parts]
        shares += [(end - begin) * vectors for begin, end, _ in parts]
        columns_met += columns
    assert columns_met >= batch * groups * (length + 1)
    assert shares.max() <= shares.sum() / workers + -(-sizes.width // family.lanes)
