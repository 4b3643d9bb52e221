"""Side by side with torch, where it is installed: values, gradients, refusals, layers and their state.

In float64, and of small integers, so that both are exact; torch's float32 weight gradient is not a reference. What the
two do not refuse alike is listed at `allowed_by_torch`.
"""

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from numba_ctconv import ConvTranspose1d, conv_transpose1d, conv_transpose1d_backward
from numba_ctconv.benchmark.workloads import Problem, layer_problems
from numba_ctconv.checks import Algorithm

torch = pytest.importorskip("torch")
functional = torch.nn.functional


def integers(rng, *shape):
    return rng.integers(-4, 5, shape).astype(np.float64)


def torch_gradients(dy, x, w, b, *parameters):
    """Output and gradients of torch, as NumPy arrays."""
    leaves = [torch.from_numpy(a).requires_grad_() for a in (x, w, b)]
    y = functional.conv_transpose1d(*leaves, *parameters)
    gradients = torch.autograd.grad(y, leaves, torch.from_numpy(dy))
    return y.detach().numpy(), [g.numpy() for g in gradients]


# --- values -----------------------------------------------------------------------------------------------------------


@st.composite
def problems(draw):
    """Valid problems, small ones, with every parameter at work."""
    groups = draw(st.integers(1, 3))
    stride, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    problem = Problem(
        "drawn",
        draw(st.sampled_from([None, 1, 2])),
        groups * draw(st.integers(1, 4)),
        groups * draw(st.integers(1, 4)),
        draw(st.integers(1, 12)),
        draw(st.integers(1, 9)),
        stride,
        draw(st.integers(0, 20)),
        draw(st.integers(0, max(stride, dilation) - 1)),
        groups,
        dilation,
    )
    full = (problem.input_length - 1) * stride + dilation * (problem.kernel_size - 1) + 1
    assume(full - 2 * problem.padding + problem.output_padding > 0)
    return problem


@settings(max_examples=200, deadline=None)
@given(problem=problems(), seed=st.integers(0, 2**32 - 1), algorithm=st.sampled_from(get_args(Algorithm)))
def test_output_and_gradients_equal_torch(problem, seed, algorithm):
    rng = np.random.default_rng(seed)
    x, w, b, dy = (integers(rng, *a.shape) for a in problem.operands())
    parameters = tuple(problem.parameters.values())
    y, gradients = torch_gradients(dy, x, w, b, *parameters)
    np.testing.assert_array_equal(conv_transpose1d(x, w, b, *parameters, algorithm=algorithm), y, strict=True)
    ours = conv_transpose1d_backward(dy, x, w, *parameters, algorithm=algorithm)
    for one, other in zip(ours, gradients, strict=True):
        np.testing.assert_array_equal(one, other, strict=True)


def test_weight_gradient_is_right_where_torch_float32_is_not(record_property):
    """A CPU build of torch 2.13 was seen to be wrong here in float32; its error is noted, not tested."""
    rng = np.random.default_rng(0)
    x, w, b = integers(rng, 2, 18, 43), integers(rng, 18, 19, 13), integers(rng, 19)
    dy = integers(rng, 2, 19, 165)
    parameters = 4, 20, 0, 1, 3
    exact = torch_gradients(dy, x, w, b, *parameters)[1][1]
    rough = torch_gradients(*(a.astype(np.float32) for a in (dy, x, w, b)), *parameters)[1][1]
    record_property("largest_error_of_torch_float32", float(np.abs(rough - exact).max()))
    for algorithm in get_args(Algorithm):
        ours = conv_transpose1d_backward(
            *(a.astype(np.float32) for a in (dy, x, w)), *parameters, needs=["weight"], algorithm=algorithm
        )
        np.testing.assert_array_equal(ours.weight, exact.astype(np.float32), strict=True)


HIFIGAN = [p.with_length(2, 40) for p in layer_problems() if p.name.startswith("hifigan_v1/")]


@pytest.mark.parametrize("problem", HIFIGAN, ids=[problem.name for problem in HIFIGAN])
def test_layers_of_a_vocoder_are_close_in_float32(problem):
    assert len(HIFIGAN) == 4
    x, w, b, _ = problem.operands(np.float32, exact=False)
    ours = conv_transpose1d(x, w, b, **problem.parameters)
    arrays = [torch.from_numpy(a) for a in (x, w, b)]
    theirs = functional.conv_transpose1d(*arrays, **problem.parameters).numpy()
    exact = functional.conv_transpose1d(*(a.double() for a in arrays), **problem.parameters).numpy()
    scale = np.sqrt(np.mean(exact**2))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * scale)
    assert np.sqrt(np.mean((ours - exact) ** 2)) < 1e-6 * scale


# --- what is refused --------------------------------------------------------------------------------------------------


def allowed_by_torch(sizes, parameters):
    """Whether torch takes such a call; None where its float64 CPU kernels refuse what is in its rules, or the reverse.

    Left out: an empty batch, where torch leaves output_padding, dilation and L_in unchecked while we check them; and
    an empty output (L_out = 0), which torch takes in float32, refuses in float64, and we take.
    """
    batch, in_channels, group_channels, input_length, kernel_size = sizes
    stride, padding, output_padding, _, dilation = parameters
    length = (input_length - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + output_padding + 1
    if batch == 0 or length == 0:
        return None
    x = torch.zeros(batch, in_channels, input_length, dtype=torch.float64)
    w = torch.zeros(in_channels, group_channels, kernel_size, dtype=torch.float64)
    try:
        return tuple(functional.conv_transpose1d(x, w, None, *parameters).shape)
    except (RuntimeError, IndexError):
        return False


def allowed_here(sizes, parameters):
    batch, in_channels, group_channels, input_length, kernel_size = sizes
    x, w = np.zeros((batch, in_channels, input_length)), np.zeros((in_channels, group_channels, kernel_size))
    try:
        return conv_transpose1d(x, w, None, *parameters).shape
    except ValueError:
        return False


@settings(max_examples=400, deadline=None)
@given(
    sizes=st.tuples(*(st.integers(low, high) for low, high in ((0, 2), (0, 6), (0, 3), (0, 5), (0, 4)))),
    parameters=st.tuples(*(st.integers(low, high) for low, high in ((-1, 4), (-1, 5), (-1, 4), (-1, 4), (-1, 4)))),
)
def test_refused_here_what_torch_refuses_whatever_is_wrong(sizes, parameters):
    expected = allowed_by_torch(sizes, parameters)
    assume(expected is not None)
    assert allowed_here(sizes, parameters) == expected


@settings(max_examples=400, deadline=None)
@given(
    sizes=st.tuples(*(st.integers(1, high) for high in (2, 6, 3, 5, 4))),
    parameters=st.tuples(*(st.integers(low, high) for low, high in ((1, 4), (0, 5), (0, 4), (1, 3), (1, 4)))),
)
def test_refused_here_what_torch_refuses_near_the_borders(sizes, parameters):
    expected = allowed_by_torch(sizes, parameters)
    assume(expected is not None)
    assert allowed_here(sizes, parameters) == expected


def test_an_empty_output_is_taken_in_every_dtype():
    for dtype in (np.float32, np.float64):
        assert conv_transpose1d(np.ones((2, 3, 3), dtype), np.ones((3, 2, 2), dtype), padding=2).shape == (2, 2, 0)


def test_an_empty_batch_is_checked_like_any_other():
    x, w = np.ones((0, 4, 5)), np.ones((4, 3, 3))
    assert conv_transpose1d(x, w).shape == tuple(functional.conv_transpose1d(*map(torch.from_numpy, (x, w))).shape)
    with pytest.raises(ValueError, match="`output_padding` must be smaller than"):
        conv_transpose1d(x, w, output_padding=5)


# --- output_size ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (4, 1, 1), (3, 2, 5), (2, 4, 1)])
def test_output_size_is_taken_as_torch_takes_it(batch, stride, padding, dilation):
    rng = np.random.default_rng(0)
    x = integers(rng, *(() if batch is None else (batch,)), 3, 5)
    theirs = torch.nn.ConvTranspose1d(3, 2, 3, stride, padding, dilation=dilation, dtype=torch.float64)
    ours = ConvTranspose1d.from_state_dict(
        {name: a.numpy() for name, a in theirs.state_dict().items()}, stride=stride, padding=padding, dilation=dilation
    )
    smallest = 4 * stride - 2 * padding + 2 * dilation + 1
    for size in range(max(smallest - 2, 1), smallest + stride + 2):
        for value in ([size], (size,), torch.Size([size]), [7, 8, size][-x.ndim :], [size] * (5 - x.ndim)):
            try:
                expected = theirs(torch.from_numpy(x), value).detach().numpy()
            except ValueError:
                with pytest.raises(ValueError, match="`output_size` must"):
                    ours(x, value)
            else:
                np.testing.assert_allclose(ours(x, value), expected, rtol=0, atol=1e-12, strict=True)


# --- layers -----------------------------------------------------------------------------------------------------------

LAYERS = [
    {},
    {"stride": 2},
    {"stride": 8, "padding": 4},
    {"stride": 5, "padding": 3, "output_padding": 1},
    {"groups": 2},
    {"stride": 3, "groups": 2, "bias": False},
    {"dilation": 4, "padding": 4},
    {"stride": 2, "padding": 1, "output_padding": 2, "groups": 2, "bias": False, "dilation": 3},
    {"stride": (2,), "padding": (1,), "output_padding": (1,), "dilation": (1,)},
]


@pytest.mark.parametrize("parameters", LAYERS, ids=str)
def test_a_layer_prints_as_torch_prints_it(parameters):
    assert repr(ConvTranspose1d(4, 6, 10, **parameters)) == repr(torch.nn.ConvTranspose1d(4, 6, 10, **parameters))


def test_positional_arguments_have_the_order_of_torch():
    arguments = (4, 6, (10,), 5, 3, 2, 2, False, 3, "zeros")
    assert repr(ConvTranspose1d(*arguments)) == repr(torch.nn.ConvTranspose1d(*arguments))


@pytest.mark.parametrize("parameters", LAYERS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_state_goes_from_torch_to_numpy_and_back(parameters, dtype):
    theirs = torch.nn.ConvTranspose1d(4, 6, 10, **parameters, dtype=getattr(torch, dtype))
    ours = ConvTranspose1d(4, 6, 10, **parameters, dtype=dtype)
    ours.load_state_dict({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    x = np.random.default_rng(0).standard_normal((2, 4, 5)).astype(dtype)
    expected = theirs(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(ours(x), expected, rtol=0, atol=1e-5 if dtype == "float32" else 1e-13, strict=True)

    state = ours.state_dict()
    assert list(state) == list(theirs.state_dict())
    back = torch.nn.ConvTranspose1d(4, 6, 10, **parameters, dtype=getattr(torch, dtype))
    back.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)


@pytest.mark.parametrize(("channels", "groups", "kernel_size"), [((64, 8), 1, 5), ((8, 64), 4, 3), ((60, 60), 60, 4)])
def test_initial_parameters_have_the_bounds_of_torch(channels, groups, kernel_size):
    """Both draw from U(-b, b), where b² is one over the channels that go out of a group times the taps."""
    theirs = torch.nn.ConvTranspose1d(*channels, kernel_size, groups=groups)
    bound = math.sqrt(groups / (channels[1] * kernel_size))
    ours = ConvTranspose1d(*channels, kernel_size, groups=groups, rng=np.random.default_rng(1))
    for drawn in (ours.weight, theirs.weight.detach().numpy()):
        assert 0.95 * bound < np.abs(drawn).max() <= bound
        assert abs(drawn.mean()) < 0.2 * bound
        assert abs(drawn.std() - bound / math.sqrt(3)) < 0.1 * bound
    for drawn in (ours.bias, theirs.bias.detach().numpy()):
        assert 0.4 * bound < np.abs(drawn).max() <= bound


def test_gradients_of_a_layer_equal_those_of_torch():
    theirs = torch.nn.ConvTranspose1d(4, 6, 5, 3, 2, 1, 2, dtype=torch.float64)
    ours = ConvTranspose1d(4, 6, 5, 3, 2, 1, 2, dtype=np.float64)
    ours.load_state_dict({name: tensor.numpy() for name, tensor in theirs.state_dict().items()})
    rng = np.random.default_rng(0)
    x, dy = integers(rng, 2, 4, 7), integers(rng, 2, 6, 20)
    leaf = torch.from_numpy(x).requires_grad_()
    expected = torch.autograd.grad(theirs(leaf), (leaf, theirs.weight, theirs.bias), torch.from_numpy(dy))
    for one, other in zip(ours.backward(dy, x), expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=0, atol=1e-11, strict=True)
