"""The rows of depthwise layers, computed where they lie: their bits, and what they leave alone."""

import numpy as np
import pytest

import numba_ctconv as nc
from numba_ctconv import reference
from numba_ctconv.cpu import depthwise, depthwise_rows


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("kernel_size", "parameters", "length"),
    [
        (12, {"stride": 2, "padding": (15, 15)}, 300),
        (3, {"stride": 2, "padding": 1, "output_padding": 1}, 90),
        (15, {"stride": 4, "padding": (-35, 9)}, 140),
        (5, {"dilation": 7, "padding": 3}, 200),
        (7, {"stride": 3, "dilation": 2}, 100),
        (32, {"stride": 12, "padding": 40}, 67),
        (2, {"stride": 5}, 1),
    ],
)
def test_depthwise_rows_give_the_bits_of_tiles(monkeypatch, dtype, kernel_size, parameters, length):
    """Two implementations of one order: rows in place, with compiled functions of their own, and packed tiles."""
    rng = np.random.default_rng(2)
    x, w = rng.standard_normal((2, 5, length)).astype(dtype), rng.standard_normal((5, 1, kernel_size)).astype(dtype)
    bias = rng.standard_normal(5).astype(dtype)

    def results():
        y = nc.conv_transpose1d(x, w, bias, algorithm="tiled", groups=5, **parameters)
        backward = {name: value for name, value in parameters.items() if name != "output_padding"}
        dx = nc.conv_transpose1d_backward(np.cos(y), x, w, algorithm="tiled", groups=5, needs=("input",), **backward)
        return y, dx.input

    in_rows = results()
    monkeypatch.setattr(depthwise_rows, "fits", lambda _: False)
    for rows, tiles in zip(in_rows, results(), strict=True):
        np.testing.assert_array_equal(rows, tiles)


def test_depthwise_rows_touch_nothing_beside_their_arrays(surrounded):
    """Vectors at the ends of a row keep to the lanes inside; what lies around would spoil a sum, or be overwritten."""
    parameters = {"stride": 3, "padding": (7, -4), "groups": 4}
    for length in (1, 15, 40, 600):
        rng = np.random.default_rng(length)
        x = rng.integers(-4, 5, (2, 4, length)).astype(np.float32)
        w, bias = rng.integers(-4, 5, (4, 1, 11)).astype(np.float32), np.arange(4, dtype=np.float32)
        y = reference.conv_transpose1d(x, w, bias, **parameters)
        whole, out = surrounded(np.zeros_like(y, np.float32))
        nc.conv_transpose1d(surrounded(x)[1], w, bias, algorithm="tiled", out=out, **parameters)
        np.testing.assert_array_equal(out, y)
        assert np.isnan(whole).sum() == whole.size - out.size
        expected = reference.conv_transpose1d_backward(y, x, w, **parameters)
        whole, dx = surrounded(np.zeros_like(x))
        gradients = nc.Gradients(dx, np.zeros_like(w), np.zeros_like(bias))
        nc.conv_transpose1d_backward(out, surrounded(x)[1], w, algorithm="tiled", out=gradients, **parameters)
        for own, defined in zip(gradients, expected, strict=True):
            np.testing.assert_array_equal(own, defined)
        assert np.isnan(whole).sum() == whole.size - dx.size


@pytest.fixture
def surrounded():
    """An array, and a view of its middle that holds given values, with NaN around."""

    def place(values):
        whole = np.full((values.shape[0], values.shape[1], values.shape[2] + 70), np.nan, np.float32)
        whole[..., 33:-37] = values
        return whole, whole[..., 33:-37]

    return place


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_depthwise_rows_that_are_not_contiguous_pass_in_chunks(dtype):
    """They are longer than what passes at once; contiguous ones are computed in place."""
    rng = np.random.default_rng(6)
    length = 2 * depthwise.CHUNK + 77
    x, w = rng.integers(-4, 5, (2, 3, length)).astype(dtype), rng.integers(-4, 5, (3, 1, 15)).astype(dtype)
    parameters = {"stride": 4, "padding": (-5, 30), "groups": 3, "algorithm": "tiled"}
    y = nc.conv_transpose1d(x, w, **parameters)
    expected = nc.conv_transpose1d_backward(y, x, w, **parameters)
    far = [np.repeat(array, 2, axis=-1)[..., ::-2] for array in (x[..., ::-1], y[..., ::-1])]
    assert all(array.strides[-1] == -2 * array.itemsize for array in far)
    np.testing.assert_array_equal(nc.conv_transpose1d(far[0], w, **parameters), y)
    for own, other in zip(nc.conv_transpose1d_backward(far[1], far[0], w, **parameters), expected, strict=True):
        np.testing.assert_array_equal(own, other)


@pytest.mark.parametrize("operand", ["input", "grad_output", "weight"])
def test_depthwise_infinities_reach_what_the_definition_lets_them_reach(operand):
    rng = np.random.default_rng(3)
    arrays = {
        "grad_output": rng.integers(-4, 5, (2, 3, 201)).astype(np.float32),
        "input": rng.integers(-4, 5, (2, 3, 100)).astype(np.float32),
        "weight": rng.integers(-4, 5, (3, 1, 5)).astype(np.float32),
    }
    for place in [0, -1, arrays[operand].size // 2, arrays[operand].size // 3]:
        given = {name: array.copy() for name, array in arrays.items()}
        given[operand].flat[place] = np.inf
        parameters = {"stride": 2, "padding": 1, "groups": 3}
        y = nc.conv_transpose1d(given["input"], given["weight"], **parameters)
        np.testing.assert_array_equal(y, reference.conv_transpose1d(given["input"], given["weight"], **parameters))
        gradients = nc.conv_transpose1d_backward(*given.values(), **parameters)
        expected = reference.conv_transpose1d_backward(*given.values(), **parameters)
        for own, defined in zip(gradients, expected, strict=True):
            np.testing.assert_array_equal(own, defined)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("length", [400, 401])  # of rows that begin a cache line each, or one of them
@pytest.mark.parametrize("begin", [0, 1, 4, 13])
@pytest.mark.parametrize("padding", [0, 1, 2])
def test_depthwise_rows_that_begin_anywhere_have_the_same_bits(dtype, length, begin, padding):
    """Vectors are stored on cache lines where all rows can be, and what is before them is computed twice."""
    rng = np.random.default_rng(4)
    x, w = rng.standard_normal((2, 5, 201)).astype(dtype), rng.standard_normal((5, 1, 3)).astype(dtype)
    parameters = {"stride": 2, "padding": (padding, 403 - padding - length), "groups": 5, "algorithm": "tiled"}
    y = nc.conv_transpose1d(x, w, **parameters)
    assert y.shape[2] == length
    memory = np.full(y.size + 256, np.nan, dtype)
    first = -memory.ctypes.data % 64 // memory.itemsize + 64 + begin
    out = memory[first : first + y.size].reshape(y.shape)
    nc.conv_transpose1d(x, w, out=out, **parameters)
    np.testing.assert_array_equal(out, y)
    one = nc.conv_transpose1d(x[1:, :1], w[:1], **{**parameters, "groups": 1})
    np.testing.assert_array_equal(one, y[1:, :1])
    assert np.isnan(memory).sum() == 256
