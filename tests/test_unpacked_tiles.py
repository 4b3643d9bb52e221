"""The tiles of few columns whose weights are read where they are: on memory of their own, and in calls."""

import ctypes
import time

import numpy as np
import pytest
from calling import call

import numba_ctconv as nc
from numba_ctconv import reference
from numba_ctconv.cpu import blocks, column_tiles, target, unpacked_tiles

FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)  # as Numba calls


@pytest.fixture
def reached(monkeypatch):
    """What each call of the tiles was given, and up to how many columns there are any; they compute as ever."""
    seen, most, kept = [], [0], []

    def watched(own, decide=blocks.unpacked_of):
        address, columns = decide(own)
        most.append(columns)
        if address == 0:
            return address, columns

        def watch(result, error, given):
            seen.append(unpacked_tiles.Given(*(ctypes.c_int64 * len(unpacked_tiles.Given._fields)).from_address(given)))
            return FUNCTION(address)(result, error, given)

        kept.append(FUNCTION(watch))
        return ctypes.cast(kept[-1], ctypes.c_void_p).value, columns

    monkeypatch.setattr(blocks, "unpacked_of", watched)
    blocks.forward_calls.cache_clear()
    yield seen, most
    blocks.forward_calls.cache_clear()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("lanes", "rows", "run", "taps"),
    [
        (16, 8, 2, 2), (16, 8, 8, 2), (16, 8, 4, 8), (16, 6, 3, 2), (16, 6, 6, 1), (16, 10, 5, 4), (8, 4, 4, 4),
        (8, 8, 2, 2), (8, 12, 4, 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("channels", [1, 21, 40])
def test_tiles_on_memory_of_their_own(dtype, lanes, rows, run, taps, channels):
    """Three vectors of tiles: nothing is written beside them, and nothing that matters is read beside the weights."""
    size, rng = np.dtype(dtype).itemsize, np.random.default_rng(channels)
    address = unpacked_tiles.unpacked_tiles(size, lanes, rows, run, taps, 32)
    tiles, width = 3 * column_tiles.panels_joined(lanes, rows), column_tiles.panel_width(rows)
    weight = np.full((channels, tiles * rows * taps + 5), np.nan, dtype)
    own = weight[:, : tiles * rows * taps]
    own[:] = rng.integers(-4, 5, own.shape)
    terms = own.reshape(channels, tiles, rows // run, taps, run).transpose(1, 2, 4, 0, 3).reshape(tiles, rows, -1)
    slab, bias = rng.integers(-4, 5, (2, 400)).astype(dtype)
    offsets = rng.integers(0, 390, channels * taps)
    counts = [n for n in column_tiles.COLUMNS if n <= unpacked_tiles.most_columns(lanes, rows, taps)]
    for columns in counts:
        product = np.einsum("tmr,cr->ctm", terms, slab[np.arange(columns)[:, None] + offsets])
        for has_bias in (False, True):
            totals, sums = np.full((2, columns + 1, tiles, width), np.nan, dtype)
            check = np.ones(2, dtype)
            given = unpacked_tiles.Given(
                weight.ctypes.data, weight.shape[1], channels, 3, slab.ctypes.data, offsets.ctypes.data,
                columns, columns, bias[::-1].ctypes.data * has_bias, -size, totals.ctypes.data, sums.ctypes.data,
                check.ctypes.data,
            )  # fmt: skip
            call(address, np.array(given, np.int64).ctypes.data)
            start = bias[::-1][: tiles * rows // run].repeat(run).reshape(tiles, rows) if has_bias else 0
            np.testing.assert_array_equal(totals[:columns, :, :rows], product + start)
            assert np.isfinite(totals[:columns]).all()
            assert np.isnan(totals[columns:]).all()
            assert np.isnan(sums[columns:]).all()
            assert check.tolist() == [0, 1]
    assert counts or target.vector_registers() < 32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("kernel_size", "stride"), [(4, 2), (8, 4), (12, 6), (3, 3), (8, 2), (2, 2)])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_given_weight_has_the_bits_of_a_packed_one(
    reached, numba_threads, monkeypatch, dtype, kernel_size, stride, workers
):
    """Channels that no group divides, tiles that no vector does, and groups; zeros have their signs."""
    if workers not in numba_threads.counts:
        pytest.skip("Numba has one thread here")
    numba_threads(workers)
    monkeypatch.setattr(target, "FEW_PRODUCTS", 0)
    rng = np.random.default_rng(kernel_size)
    for channels, row_channels, groups in ((37, 131, 1), (3, 70, 2), (64, 128, 1), (5, 7, 1)):
        weight = rng.standard_normal((channels * groups, row_channels, kernel_size)).astype(dtype)
        weight[:, 1::2] *= 3 * np.finfo(dtype).smallest_subnormal  # whose products are that, or zeros of either sign
        for bias in (None, rng.standard_normal(2 * row_channels * groups).astype(dtype)[::-2]):
            layer = nc.ConvTranspose1d(
                channels * groups, row_channels * groups, kernel_size, stride, groups=groups, bias=bias is not None,
                dtype=dtype,
            )  # fmt: skip
            layer.weight = weight
            if bias is not None:
                layer.bias = bias
            for batch, length in ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2)):
                x = 0.1 * rng.standard_normal((batch, channels * groups, length)).astype(dtype)
                y, expected = nc.conv_transpose1d(x, weight, bias, stride, groups=groups), layer(x)
                np.testing.assert_array_equal(y.view(np.uint8), expected.view(np.uint8))
    seen, most = reached
    assert max(most) < kernel_size // stride or {given.channels for given in seen} >= {37, 3, 64}
    assert max(most) > 0 or target.vector_registers() < 32


@pytest.mark.parametrize("weight_view", ["reversed taps", "reversed channels", "every second row", "time first"])
@pytest.mark.parametrize("totals", [0, blocks.TOTALS_BYTES])
def test_weights_of_any_strides(reached, monkeypatch, weight_view, totals):
    """Those whose taps and rows lie side by side are read where they are, whatever lies between their channels.

    And whether or not there would be room for the sums of all tiles to wait.
    """
    monkeypatch.setattr(blocks, "TOTALS_BYTES", totals)
    rng = np.random.default_rng(0)
    whole = rng.standard_normal((40, 256, 4)).astype(np.float32)
    weight = {
        "reversed taps": whole[..., ::-1],
        "reversed channels": whole[::-1],
        "every second row": whole[:, ::2],
        "time first": np.asfortranarray(whole),
    }[weight_view]
    x = rng.standard_normal((1, 40, 1)).astype(np.float32)
    y = nc.conv_transpose1d(x, weight, stride=2)
    layer = nc.ConvTranspose1d(40, weight.shape[1], 4, 2, bias=False)
    layer.weight = weight
    np.testing.assert_array_equal(y, layer(x))
    assert bool(reached[0]) == (weight_view == "reversed channels")


@pytest.mark.parametrize("value", [np.inf, np.nan])
@pytest.mark.parametrize("place", [(0, 0, 0), (20, 100, 3), (20, 127, 1), (39, -1, 2), (20, -1, 0)])
@pytest.mark.parametrize("row_channels", [128, 131])
@pytest.mark.parametrize("groups", [1, 2])
def test_weights_that_are_not_finite_are_found(reached, value, place, row_channels, groups):
    """Of tiles that are read where they are, and of those after them; or inputs, which spoil what they reach alone."""
    rng = np.random.default_rng(10)
    x = rng.integers(-4, 5, (1, 40 * groups, 2)).astype(np.float32)
    w = rng.integers(-4, 5, (40 * groups, row_channels, 4)).astype(np.float32)
    parameters = {"stride": 2, "padding": 1, "groups": groups}
    w[place] = value
    for weight in (w, np.where(np.isfinite(w), w, np.float32(3))):
        y = nc.conv_transpose1d(x, weight, **parameters)
        np.testing.assert_array_equal(y, reference.conv_transpose1d(x, weight, **parameters))
        x[0, 7, 1] = value
    assert reached[0]


@pytest.mark.parametrize("row_channels", [128, 131])
@pytest.mark.parametrize(("kernel_size", "stride", "length"), [(4, 2, 1), (12, 6, 1), (7, 2, 1), (4, 2, 6), (7, 2, 6)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_are_looked_through_only_where_a_sum_tells(
    numba_threads, row_channels, kernel_size, stride, length, dtype
):
    """What no tile writes tells nothing: a call that has to look at each weight takes several times as long."""
    numba_threads(1)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 1, 400, length)).astype(dtype)
    x[1] = np.nan
    w = rng.standard_normal((400, row_channels, kernel_size)).astype(dtype)
    least = [np.inf, np.inf]
    for _ in range(20):
        for k in range(2):
            start = time.perf_counter()
            nc.conv_transpose1d(x[k], w, stride=stride)
            least[k] = min(least[k], time.perf_counter() - start)
    assert 2 * least[0] < least[1]
