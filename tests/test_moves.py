"""The moves of the CPU engine on memory of their own, called by their addresses."""

import numpy as np
import pytest
from calling import call

from numba_ctconv.cpu import moves, target


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "phases"), [(8, 8), (8, 2), (9, 3), (5, 5), (6, 6), (1, 1), (7, 7), (12, 12)])
def test_moves_interleave_and_lay_out(dtype, rows, phases):
    """The packing moves on memory of their own, called by their addresses."""
    size = np.dtype(dtype).itemsize
    lanes = target.vector_bytes() // size
    source = np.random.default_rng(0).standard_normal((rows, 5 * lanes)).astype(dtype)
    interleaved = np.full((3 * lanes, rows), np.nan, dtype)
    call(
        moves.moves.interleave(size, lanes, rows),
        source.ctypes.data,
        5 * lanes,
        3 * lanes,
        interleaved.ctypes.data,
        rows,
    )
    np.testing.assert_array_equal(interleaved, source[:, : 3 * lanes].T)
    laid_out = np.full((4, 40), np.nan, dtype)
    call(moves.moves.lay_out(size, phases), source.ctypes.data, phases + 1, 4, laid_out.ctypes.data, 40)
    for j in range(4):
        np.testing.assert_array_equal(laid_out[j, :phases], source.ravel()[j * (phases + 1) :][:phases])
    assert np.isnan(laid_out[:, phases:]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("run", "channels", "taps"),
    [(2, 4, 2), (4, 2, 2), (6, 1, 2), (5, 1, 3), (8, 1, 2), (3, 3, 1), (7, 1, 1), (3, 1, 1)],
)
def test_moves_pack_whole_channels(dtype, run, channels, taps):
    """Of three tiles, between whose panels nothing is written."""
    size, rows = np.dtype(dtype).itemsize, run * channels
    source = np.random.default_rng(0).standard_normal((5, 3 * rows * taps + 7)).astype(dtype)
    packed = np.full((3, 6, taps, rows), np.nan, dtype)
    move = moves.moves.pack_whole(size, run, channels, taps)
    step = packed.strides[0] // size
    call(move, source.ctypes.data, source.shape[1], 5, rows * taps, 3, step, packed.ctypes.data)
    own = source[:, : 3 * rows * taps].reshape(5, 3, channels, taps, run)
    np.testing.assert_array_equal(packed[:, :5], own.transpose(1, 0, 3, 2, 4).reshape(3, 5, taps, rows))
    assert np.isnan(packed[:, 5]).all()
    call(move, source.ctypes.data, 0, 0, 0, 3, step, packed[0, 5].ctypes.data)
    assert np.isnan(packed[:, 5]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("planes", [1, 2, 3, 8, 10])
@pytest.mark.parametrize(("first", "stop", "columns"), [(0, 3, 3), (2, 9, 11), (1, 40, 41), (5, 5, 6), (-3, 20, 17)])
def test_moves_part_short_rows(dtype, planes, first, stop, columns):
    """Memory beside the rows is neither read, as zeros show, nor written."""
    size = np.dtype(dtype).itemsize
    move = moves.moves.part_rows(size, planes)
    if move == 0:
        pytest.skip("vectors of this machine are not loaded in part")
    before = 3
    source = np.random.default_rng(0).standard_normal((4, before + columns * planes)).astype(dtype)
    parted = np.full((4, planes, columns + 19), np.nan, dtype)
    values = [
        source.ctypes.data + before * size, source.strides[0], first, stop, 4, parted.ctypes.data, *parted.strides[:2],
        columns,
    ]  # fmt: skip
    call(move, np.array(values, np.int64).ctypes.data)
    samples = np.arange(-before, columns * planes)
    there = np.where((samples >= first) & (samples < stop), source, 0)[:, before:]
    np.testing.assert_array_equal(parted[:, :, :columns], there.reshape(4, columns, planes).transpose(0, 2, 1))
    assert np.isnan(parted[:, :, columns:]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("planes", [1, 2, 3, 5, 8, 12])
@pytest.mark.parametrize("over", [0, 1, -1])
def test_moves_part_strips(dtype, planes, over):
    """Of three rows and four strips of 2 vectors, each of which holds so many columns more of the next one."""
    size = np.dtype(dtype).itemsize
    strip = 2 * (target.vector_bytes() // size)
    count = strip + over
    source = np.random.default_rng(0).standard_normal((3, (4 * strip + 1) * planes + 2)).astype(dtype)
    parted = np.full((4, 3, planes, count + 2), np.nan, dtype)
    strips = [source.ctypes.data + size, source.strides[0], 3, 4, strip * planes * size]
    steps = [parted.strides[1], parted.strides[2], parted.strides[0], count]
    values = np.array([*strips, parted.ctypes.data, *steps], np.int64)
    call(moves.moves.part_strips(size, strip // 2, planes), values.ctypes.data)
    for s in range(4):
        own = source[:, 1 + s * strip * planes :][:, : count * planes].reshape(3, count, planes)
        np.testing.assert_array_equal(parted[s, :, :, :count], own.transpose(0, 2, 1))
    assert np.isnan(parted[:, :, :, count:]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 12])
def test_moves_transpose(dtype, rows):
    size = np.dtype(dtype).itemsize
    lanes = target.vector_bytes() // size
    square = np.random.default_rng(1).standard_normal((lanes, 2 * lanes + 3)).astype(dtype)
    transposed = np.full((2 * lanes, lanes + rows), np.nan, dtype)
    steps = square.strides[0], 2 * lanes
    call(moves.moves.transpose(size), square.ctypes.data, *steps, transposed.ctypes.data, transposed.strides[0])
    np.testing.assert_array_equal(transposed[:, :lanes], square[:, : 2 * lanes].T)
    assert np.isnan(transposed[:, lanes:]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("run", "channels", "taps"), [(8, 1, 3), (2, 3, 2), (1, 8, 1), (5, 1, 2)])
def test_moves_pack_runs(dtype, run, channels, taps):
    """Of three tiles, between whose panels nothing is written; a tap's run lies two elements after the last one's."""
    size = np.dtype(dtype).itemsize
    period, tile_step = taps * (run + 2), channels * taps * (run + 2) + 1
    source = np.random.default_rng(0).standard_normal((5, 3 * tile_step)).astype(dtype)
    packed = np.full((3, 6, taps, channels, run), np.nan, dtype)
    values = [
        source.ctypes.data, source.shape[1], 5, tile_step, 3, packed.strides[0] // size, period, run + 2, taps,
        packed.ctypes.data,
    ]  # fmt: skip
    call(moves.moves.pack_runs(size, run, channels), np.array(values, np.int64).ctypes.data)
    for tile in range(3):
        own = source[:, tile * tile_step :][:, : channels * period].reshape(5, channels, taps, run + 2)[..., :run]
        np.testing.assert_array_equal(packed[tile, :5], own.transpose(0, 2, 1, 3))
    assert np.isnan(packed[:, 5]).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("run", [1, 2, 4, 7, 16, 25])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 2), (30, 1), (2, 70)])
def test_moves_lay_runs_of_rows(dtype, run, before, after):
    """Samples that are cut off before and after are zero; memory beside the runs is not written."""
    size, period, count = np.dtype(dtype).itemsize, run + 1, 6
    samples = np.random.default_rng(0).standard_normal((3, count * period)).astype(dtype)
    stop = max(samples.shape[1] - after, before)
    inside = [t for t in range(count) if before <= t * period and t * period + run <= stop]
    begin, end = (inside[0], inside[-1] + 1) if inside else (count, count)
    laid = np.full((count, 3, run + 2), np.nan, dtype)
    values = [
        samples.ctypes.data, samples.strides[0], period * size, before, stop, 3, laid.ctypes.data, laid.strides[1],
        laid.strides[0], begin, end, count,
    ]  # fmt: skip
    call(moves.moves.lay_rows(size, run), np.array(values, np.int64).ctypes.data)
    samples[:, :before] = samples[:, stop:] = 0
    np.testing.assert_array_equal(laid[..., :run], samples.reshape(3, count, period).transpose(1, 0, 2)[..., :run])
    assert np.isnan(laid[..., run:]).all()
