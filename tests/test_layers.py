"""ConvTranspose1d: parameters, state, copies, and the calls that it passes on."""

import copy
import pickle

import numpy as np
import pytest

import numba_ctconv as nc
from numba_ctconv import reference

LAYERS = [
    (((4, 6, 3)), {}, "ConvTranspose1d(4, 6, kernel_size=(3,), stride=(1,))"),
    (
        (4, 6, 3),
        {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
        "ConvTranspose1d(4, 6, kernel_size=(3,), stride=(2,), padding=(1,), output_padding=(1,), groups=2)",
    ),
    (
        (4, 6, 5),
        {"dilation": 3, "bias": False},
        "ConvTranspose1d(4, 6, kernel_size=(5,), stride=(1,), dilation=(3,), bias=False)",
    ),
    ((2, 2, 10, 5, (0, 5)), {}, "ConvTranspose1d(2, 2, kernel_size=(10,), stride=(5,), padding=(0, 5))"),
]


@pytest.mark.parametrize(("sizes", "keywords", "text"), LAYERS)
def test_repr_is_torchs(sizes, keywords, text):
    assert repr(nc.ConvTranspose1d(*sizes, **keywords)) == text


def test_initial_parameters_are_uniform_within_torchs_bounds():
    layer = nc.ConvTranspose1d(64, 32, 8, groups=4, rng=np.random.default_rng(5))
    bound = np.sqrt(4 / (32 * 8))
    for values, shape in ((layer.weight, (64, 8, 8)), (layer.bias, (32,))):
        assert values.shape == shape
        assert values.dtype == np.float32
        assert np.abs(values).max() <= bound * (1 + 1e-6)
    assert np.abs(layer.weight).max() > 0.99 * bound
    assert abs(layer.weight.mean()) < 0.02 * bound
    assert layer.weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)


def test_rng_decides_the_parameters():
    one, same, other = (nc.ConvTranspose1d(3, 4, 5, rng=np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.weight, same.weight)
    assert not np.array_equal(one.weight, other.weight)
    assert not np.array_equal(nc.ConvTranspose1d(3, 4, 5).weight, nc.ConvTranspose1d(3, 4, 5).weight)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_forward_and_backward_are_the_functions(dtype, bias):
    layer = nc.ConvTranspose1d(4, 6, 5, stride=3, padding=2, output_padding=1, groups=2, bias=bias, dtype=dtype)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((2, 4, 9)).astype(dtype)
    parameters = {"stride": 3, "padding": 2, "groups": 2}
    y = layer(x)
    expected = nc.conv_transpose1d(x, layer.weight, layer.bias, output_padding=1, **parameters)
    np.testing.assert_array_equal(y, expected, strict=True)
    np.testing.assert_allclose(
        y, reference.conv_transpose1d(x, layer.weight, layer.bias, output_padding=1, **parameters), rtol=1e-4, atol=1e-5
    )
    gradients = layer.backward(y, x)
    expected = nc.conv_transpose1d_backward(y, x, layer.weight, **parameters)
    np.testing.assert_array_equal(gradients.input, expected.input)
    np.testing.assert_array_equal(gradients.weight, expected.weight)
    if bias:
        np.testing.assert_array_equal(gradients.bias, expected.bias)
    else:
        assert gradients.bias is None
    assert layer.backward(y, x, needs=("bias",)).bias.shape == (6,)


def test_output_size_and_out():
    layer = nc.ConvTranspose1d(2, 3, 4, stride=4, padding=1)
    x = np.ones((1, 2, 5), np.float32)
    assert layer(x, (20,)).shape == layer(x, 20).shape == layer(x, (9, 9, 20)).shape == (1, 3, 20)
    out = np.empty((1, 3, 20), np.float32)
    assert layer(x, 20, out=out) is out
    np.testing.assert_array_equal(out, layer(x, output_size=20))


def test_a_layer_copies_what_is_assigned_and_shows_a_read_only_view():
    layer = nc.ConvTranspose1d(2, 3, 4)
    mine = np.ones((2, 3, 4), np.float32)
    layer.weight = mine
    mine[:] = 7
    np.testing.assert_array_equal(layer.weight, np.ones((2, 3, 4)))
    for name in ("weight", "bias"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(layer, name)[...] = 0
    before = layer.weight
    layer.weight = layer.weight - np.float32(0.5) * layer.weight
    np.testing.assert_array_equal(layer.weight, np.full((2, 3, 4), 0.5))
    np.testing.assert_array_equal(before, np.ones((2, 3, 4)))
    layer.bias = np.arange(3, dtype=np.float32)[::-1]
    np.testing.assert_array_equal(layer.bias, [2, 1, 0])


def test_a_training_step_lowers_the_loss():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((2, 3, 8)), rng.standard_normal((2, 2, 16))
    layer = nc.ConvTranspose1d(3, 2, 4, stride=2, padding=1, dtype=np.float64, rng=rng)
    losses = []
    for _ in range(30):
        residual = layer(x) - target
        losses.append(np.sum(residual**2))
        g = layer.backward(2 * residual, x)
        layer.weight = layer.weight - 5e-3 * g.weight
        layer.bias = layer.bias - 5e-3 * g.bias
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.8 * losses[0]


def test_state_dict_round_trip():
    layer = nc.ConvTranspose1d(4, 6, 3, groups=2)
    state = layer.state_dict()
    assert list(state) == ["weight", "bias"]
    state["weight"][:] = 3  # a copy, so the layer keeps its own
    assert not np.any(layer.weight == 3)
    other = nc.ConvTranspose1d(4, 6, 3, groups=2)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.weight, state["weight"])
    np.testing.assert_array_equal(other.bias, layer.bias)
    assert list(nc.ConvTranspose1d(4, 6, 3, bias=False).state_dict()) == ["weight"]


def test_from_state_dict_reads_sizes_and_dtype():
    layer = nc.ConvTranspose1d(4, 6, 3, stride=2, groups=2, dtype=np.float64)
    twin = nc.ConvTranspose1d.from_state_dict(layer.state_dict(), stride=2, groups=2)
    assert repr(twin) == repr(layer)
    x = np.ones((4, 5))
    np.testing.assert_array_equal(twin(x), layer(x), strict=True)
    bare = nc.ConvTranspose1d(4, 6, 3, bias=False)
    assert nc.ConvTranspose1d.from_state_dict(bare.state_dict()).bias is None


def test_a_refused_state_leaves_the_layer_as_it_was():
    layer = nc.ConvTranspose1d(4, 6, 3)
    before = layer.state_dict()
    with pytest.raises(ValueError, match=r"`bias` must be of shape \(6,\); got shape \(5,\)"):
        layer.load_state_dict({"weight": np.zeros((4, 6, 3), np.float32), "bias": np.zeros(5, np.float32)})
    np.testing.assert_array_equal(layer.weight, before["weight"])


@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_pickle_and_copy(twin_of, bias):
    layer = nc.ConvTranspose1d(4, 6, 10, 5, (0, 5), bias=bias, algorithm="scatter")
    twin = twin_of(layer)
    assert repr(twin) == repr(layer)
    assert twin.algorithm == "scatter"
    x = np.ones((1, 4, 7), np.float32)
    np.testing.assert_array_equal(twin(x), layer(x), strict=True)
    twin.weight = np.zeros_like(twin.weight)
    assert np.any(layer.weight)


def test_backward_without_the_input():
    layer = nc.ConvTranspose1d(2, 3, 4, stride=2, output_padding=1)
    x = np.ones((1, 2, 5), np.float32)
    y = layer(x)
    alone = layer.backward(y, None, needs=("input",), input_length=5)
    np.testing.assert_array_equal(alone.input, layer.backward(y, x).input, strict=True)
