"""Forward and gradients on CUDA against the definition, bit by bit, through the public functions."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

import numba_ctconv as nc
from numba_ctconv import reference
from numba_ctconv.benchmark.workloads import CASES, Problem, layer_problems
from numba_ctconv.cuda import ENGINE, CudaEngine, launch

SMALL = 40_000  # floating-point operations that the simulator does in a tenth of a second
LAYERS = [problem.shrunk(channels=3, input_length=5).limited(SMALL) for problem in layer_problems(core=True)[::6]]
PROBLEMS = [*(problem.limited(SMALL) for problem in CASES), *LAYERS]

named = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
algorithms = pytest.mark.parametrize("algorithm", ["tiled", "gather", "scatter"])
dtypes = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def on_device(operands):
    return [None if array is None else ENGINE.upload(array) for array in operands]


def poisoned(shape, dtype):
    """Memory that no kernel has written."""
    return ENGINE.upload(np.full(shape, np.nan, dtype))


def forward(problem, operands, **options):
    x, w, b, dy = on_device(operands)
    out = poisoned(dy.shape, dy.dtype)
    y = nc.conv_transpose1d(x, w, b, **problem.forward_parameters, **options, out=out)
    assert y is out
    return ENGINE.download(y)


def backward(problem, operands, **options):
    x, w, _, dy = on_device(operands)
    out = nc.Gradients(*(poisoned(a.shape, dy.dtype) for a in (x, w)), poisoned(problem.out_channels, dy.dtype))
    gradients = nc.conv_transpose1d_backward(dy, x, w, **problem.backward_parameters, **options, out=out)
    return [ENGINE.download(gradient) for gradient in gradients]


def same_bits(result, expected):
    np.testing.assert_array_equal(result, expected.astype(result.dtype), strict=True)


@named
@algorithms
@dtypes
def test_forward_equals_the_definition(problem, algorithm, dtype):
    operands = problem.operands(dtype)
    expected = reference.conv_transpose1d(*operands[:3], **problem.forward_parameters)
    same_bits(forward(problem, operands, algorithm=algorithm), expected)


@named
@algorithms
@dtypes
def test_gradients_equal_the_definition(problem, algorithm, dtype):
    x, w, _, dy = operands = problem.operands(dtype)
    keywords = {name: value for name, value in problem.parameters.items() if name != "output_padding"}
    expected = reference.conv_transpose1d_backward(dy, x, w, **keywords)
    for gradient, exact in zip(backward(problem, operands, algorithm=algorithm), expected, strict=True):
        same_bits(gradient, exact)


PARTIAL = Problem("partial", 2, 4, 6, 7, 5, stride=3, padding=2, output_padding=1, groups=2)


@pytest.mark.parametrize("name", nc.Gradients._fields)
def test_one_gradient_alone(name):
    x, w, _, dy = on_device(PARTIAL.operands())
    whole = nc.conv_transpose1d_backward(dy, x, w, **PARTIAL.backward_parameters)
    alone = nc.conv_transpose1d_backward(
        dy,
        x if name == "weight" else None,
        w,
        **PARTIAL.backward_parameters,
        input_length=None if name == "weight" else PARTIAL.input_length,
        needs=(name,),
    )
    for field, gradient in alone._asdict().items():
        assert (gradient is not None) == (field == name)
    same_bits(getattr(alone, name).copy_to_host(), getattr(whole, name).copy_to_host())


def test_auto_is_gather():
    operands = PARTIAL.operands(exact=False)
    np.testing.assert_array_equal(forward(PARTIAL, operands), forward(PARTIAL, operands, algorithm="gather"))


@pytest.mark.parametrize(("blocks", "threads"), [(1, 1), (2, 3), (1, 7), (5, 2)])
def test_gather_has_the_same_bits_for_any_launch(monkeypatch, blocks, threads):
    """The sums of a thread don't depend on how many there are; the trees depend on LANES alone, which stays."""
    operands = PARTIAL.operands(exact=False)
    expected = [forward(PARTIAL, operands), *backward(PARTIAL, operands)]
    monkeypatch.setattr(launch, "THREADS", threads)
    monkeypatch.setattr(launch, "FEWEST_BLOCKS", blocks)
    monkeypatch.setattr(launch, "MOST_BLOCKS", blocks)
    for one, other in zip(expected, [forward(PARTIAL, operands), *backward(PARTIAL, operands)], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("lanes", [1, 2, 5, 8])
def test_any_number_of_lanes_covers_every_term_once(monkeypatch, lanes):
    operands = PARTIAL.operands(np.float64)
    expected = backward(PARTIAL, operands)
    monkeypatch.setattr(launch, "LANES", lanes)
    for one, other in zip(expected, backward(PARTIAL, operands), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_item_has_the_same_bits_in_any_batch():
    many = dataclasses.replace(PARTIAL, batch=3)
    operands = many.operands(exact=False)
    alone = operands._replace(input=operands.input[1:2], grad_output=operands.grad_output[1:2])
    np.testing.assert_array_equal(forward(many, operands)[1:2], forward(many, alone))
    np.testing.assert_array_equal(backward(many, operands)[0][1:2], backward(many, alone)[0])


@algorithms
@pytest.mark.filterwarnings("ignore:invalid value")  # of NumPy, with which the simulator computes
def test_inf_and_nan_reach_only_their_outputs(algorithm):
    problem = Problem("special", 1, 2, 2, 9, 4, stride=3, padding=2)
    x, w, b, _ = operands = problem.operands(np.float64)
    x[0, 0, 3], x[0, 1, 5] = np.inf, np.nan
    w[0, 1, 0] = -np.inf
    expected = reference.conv_transpose1d(x, w, b, **problem.forward_parameters)
    assert 0 < np.isnan(expected).sum() < expected.size / 2
    np.testing.assert_array_equal(forward(problem, operands, algorithm=algorithm), expected)


@pytest.mark.parametrize("name", ["forward", "grad_input", "grad_weight"])
def test_the_engine_learns_the_precision_of_the_call(monkeypatch, name):
    """From the argument, from the layer, or from the setting around the call."""
    seen = []
    place = {"forward": 6, "grad_input": 5, "grad_weight": 5}[name]
    monkeypatch.setattr(CudaEngine, name, lambda *given: seen.append(given[1:][place]))
    x, w, b, dy = on_device(PARTIAL.operands())

    def call(*, layer=None, **options):
        if name == "forward":
            return layer(x) if layer else nc.conv_transpose1d(x, w, b, **PARTIAL.forward_parameters, **options)
        if layer:
            return layer.backward(dy, x)
        return nc.conv_transpose1d_backward(dy, x, w, **PARTIAL.backward_parameters, **options)

    given = {"weight": PARTIAL.operands().weight, "bias": PARTIAL.operands().bias}
    layer = nc.ConvTranspose1d.from_state_dict(given, **PARTIAL.parameters, device="cuda", precision="tf32")
    call()
    call(precision="tf32")
    call(layer=layer)
    with nc.float32_precision("tf32"):
        call()
        call(precision="ieee")
    assert seen == ["ieee", "tf32", "tf32", "tf32", "ieee"]


@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
def test_the_simple_kernels_compute_in_full_where_tf32_is_allowed(algorithm):
    operands = PARTIAL.operands(exact=False)
    full = forward(PARTIAL, operands, algorithm=algorithm)
    allowed = forward(PARTIAL, operands, algorithm=algorithm, precision="tf32")
    np.testing.assert_allclose(allowed, full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("exact", [True, False], ids=["integers", "normal"])
def test_halves_are_the_float32_result_rounded_once(dtype, exact):
    pytest.importorskip("ml_dtypes", reason="NumPy's bfloat16 is in ml_dtypes")
    half = [a.astype(dtype) for a in PARTIAL.operands(exact=exact)]
    single = [a.astype(np.float32) for a in half]  # exact
    same_bits(forward(PARTIAL, half), forward(PARTIAL, single))
    for gradient, full in zip(backward(PARTIAL, half), backward(PARTIAL, single), strict=True):
        same_bits(gradient, full)


def test_halves_are_not_scattered():
    x, w, b, dy = on_device([a.astype(np.float16) for a in PARTIAL.operands()])
    message = '`algorithm` must be "auto", "tiled" or "gather" with float16 arrays'
    with pytest.raises(ValueError, match=message):
        nc.conv_transpose1d(x, w, b, **PARTIAL.forward_parameters, algorithm="scatter")
    with pytest.raises(ValueError, match=message):
        nc.conv_transpose1d_backward(dy, x, w, **PARTIAL.backward_parameters, algorithm="scatter")
