"""CuPy's arrays and torch's tensors on a real GPU: what they give is taken, and what they get is theirs."""

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
from numba import cuda

import numba_ctconv as nc
from numba_ctconv.benchmark.workloads import Problem
from numba_ctconv.cuda import ENGINE, queues

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(queues.SIMULATED, reason="there is no GPU")]

PROBLEM = Problem("libraries", 2, 12, 10, 65, 8, stride=4, padding=2)
CALLS = 50
CYCLES = 200_000_000  # a tenth of a second


@pytest.fixture
def torch():
    found = pytest.importorskip("torch")
    if not found.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    return found


@pytest.fixture
def cupy():
    return pytest.importorskip("cupy")


# --- torch ------------------------------------------------------------------------------------------------------------


def test_tensors_in_and_tensors_out(forward, backward, torch, operands, expected):
    x, w, b, dy = (torch.from_numpy(a).cuda() for a in operands)
    result = forward(x, w, b)
    assert isinstance(result, torch.Tensor)
    np.testing.assert_array_equal(result.cpu().numpy(), expected)
    for gradient, exact in zip(backward(dy, x, w), backward(operands[3], *operands[:2]), strict=True):
        assert isinstance(gradient, torch.Tensor)
        np.testing.assert_array_equal(gradient.cpu().numpy(), exact)


def test_tensors_of_any_strides(forward, torch, operands, expected):
    x, w, b = (torch.from_numpy(a).cuda() for a in operands[:3])
    views = x.transpose(1, 2).contiguous().transpose(1, 2), torch.stack([w, w], -1)[..., 0], b.repeat(2)[: len(b)]
    assert not any(view.is_contiguous() for view in views[:2])
    np.testing.assert_array_equal(forward(*views).cpu().numpy(), expected)
    wide = torch.full((*expected.shape[:-1], 2 * expected.shape[-1]), np.nan, device="cuda")
    out = wide[..., ::2]
    assert forward(x, w, b, out=out) is out
    np.testing.assert_array_equal(out.cpu().numpy(), expected)
    assert torch.isnan(wide[..., 1::2]).all()


def test_the_current_stream_of_torch_is_where_the_work_goes(forward, torch, operands, expected):
    """The inputs are written late on it; a call that ran anywhere else would read NaN."""
    x, w, b = (torch.from_numpy(a).cuda() for a in operands[:3])
    result = forward(x, w, b).fill_(np.nan)
    late = torch.full_like(x, np.nan)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)
        late.copy_(x)
        forward(late, w, b, out=result)
        assert not stream.query()  # nobody waited
        np.testing.assert_array_equal(result.cpu().numpy(), expected)


def test_a_stream_beside_that_of_torch_waits_for_it(forward, torch, operands, expected):
    x, w, b = (torch.from_numpy(a).cuda() for a in operands[:3])
    forward(x, w, b)
    late, side = torch.full_like(x, np.nan), torch.cuda.Stream()
    torch.cuda.synchronize()
    torch.cuda._sleep(CYCLES)
    late.copy_(x)
    result = forward(late, w, b, stream=side)
    side.synchronize()
    np.testing.assert_array_equal(result.cpu().numpy(), expected)


def test_memory_in_use_on_another_stream_is_not_given_away(forward, torch, operands, expected):
    """record_stream: torch would give a tensor's memory to the next one as soon as the last name of it is gone."""
    x, w, b = (torch.from_numpy(a).cuda() for a in operands[:3])
    forward(x, w, b)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(CYCLES)
    passing = x.clone()
    result = forward(passing, w, b, stream=side)
    del passing
    for _ in range(8):
        torch.full_like(x, np.nan)
    side.synchronize()
    np.testing.assert_array_equal(result.cpu().numpy(), expected)


def test_the_steady_state_asks_the_driver_for_no_memory(forward, backward, torch, operands):
    x, w, b, dy = (torch.from_numpy(a).cuda() for a in operands)

    def round_():
        forward(x, w, b)
        backward(dy, x, w)

    round_()
    torch.cuda.synchronize()
    free, held = torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()
    for _ in range(CALLS):
        round_()
    torch.cuda.synchronize()
    assert torch.cuda.memory_reserved() == held
    assert torch.cuda.mem_get_info()[0] == free


def test_torchs_graphs(forward, torch, operands):
    x, w, b, _ = (torch.from_numpy(a).cuda() for a in operands)
    out = forward(x, w, b)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward(x, w, b, out=out)
        fresh = forward(x, w, b)  # from the graph's own pool
    for factor in (2, -3):
        x.copy_(factor * torch.from_numpy(operands[0]))
        graph.replay()
        exact = forward(factor * operands[0], *operands[1:3])
        np.testing.assert_array_equal(out.cpu().numpy(), exact)
        np.testing.assert_array_equal(fresh.cpu().numpy(), exact)


def test_a_layer_with_tensors(backward, torch, operands, expected):
    state = {"weight": torch.from_numpy(operands[1]).cuda(), "bias": torch.from_numpy(operands[2]).cuda()}
    layer = nc.ConvTranspose1d.from_state_dict(state, **PROBLEM.parameters, device="cuda")
    x, dy = torch.from_numpy(operands[0]).cuda(), torch.from_numpy(operands[3]).cuda()
    assert isinstance(layer(x), torch.Tensor)
    np.testing.assert_array_equal(layer(x).cpu().numpy(), expected)
    for gradient, exact in zip(layer.backward(dy, x), backward(operands[3], *operands[:2]), strict=True):
        np.testing.assert_array_equal(gradient.cpu().numpy(), exact)


def test_refused_tensors(forward, torch, operands, expected):
    x, w, b = (torch.from_numpy(a).cuda() for a in operands[:3])
    with pytest.raises(TypeError, match="`input` must be a tensor that autograd does not follow"):
        forward(x.clone().requires_grad_(), w, b)
    with pytest.raises(TypeError, match="`input` must live where"):
        forward(x, torch.from_numpy(operands[1]).numpy(), b)
    with pytest.raises(TypeError, match="`input` must be a tensor in dense memory; got layout"):
        forward(x.to_sparse(), w, b)
    with pytest.raises((MemoryError, torch.OutOfMemoryError)):
        nc.conv_transpose1d(x, w, b, output_size=2**38, padding=(0, 0))
    np.testing.assert_array_equal(forward(x, w, b).cpu().numpy(), expected)


def test_dlpack_alone(forward, torch, operands, expected):
    """A tensor behind the protocol: its current stream is ordered before ours."""

    class Exporting:
        def __init__(self, tensor):
            self.__dlpack_device__ = tensor.__dlpack_device__
            self.__dlpack__ = tensor.__dlpack__

    x, w, b = (torch.from_numpy(a).cuda() for a in operands[:3])
    forward(x, w, b)
    late, source = torch.full_like(x, np.nan), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(source):
        torch.cuda._sleep(CYCLES)
        late.copy_(x)
        result = forward(*map(Exporting, (late, w, b)), stream=cuda.stream())
    np.testing.assert_array_equal(ENGINE.download(result), expected)


# --- CuPy -------------------------------------------------------------------------------------------------------------


def test_cupys_arrays_in_and_out(forward, backward, cupy, operands, expected):
    x, w, b, dy = map(cupy.asarray, operands)
    result = forward(x, w, b)
    assert isinstance(result, cupy.ndarray)
    np.testing.assert_array_equal(cupy.asnumpy(result), expected)
    for gradient, exact in zip(backward(dy, x, w), backward(operands[3], *operands[:2]), strict=True):
        assert isinstance(gradient, cupy.ndarray)
        np.testing.assert_array_equal(cupy.asnumpy(gradient), exact)
    np.testing.assert_array_equal(cupy.asnumpy(forward(cupy.asfortranarray(x), w[::1], b)), expected)


def test_cupys_pool_is_the_only_source_of_memory(forward, backward, cupy, operands):
    x, w, b, dy = map(cupy.asarray, operands)
    forward(x, w, b)
    backward(dy, x, w)
    pool = cupy.get_default_memory_pool()
    before = pool.total_bytes()
    for _ in range(CALLS):
        forward(x, w, b)
        backward(dy, x, w)
    assert pool.total_bytes() == before


def test_the_current_stream_of_cupy_is_where_the_work_goes(forward, cupy, operands, expected):
    x, w, b = map(cupy.asarray, operands[:3])
    forward(x, w, b)
    late = cupy.full_like(x, np.nan)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    source = 'extern "C" __global__ void sleep(long long n) { long long t = clock64(); while (clock64() - t < n); }'
    sleep = cupy.RawKernel(source, "sleep")
    with stream:
        sleep((1,), (1,), (CYCLES,))
        late[...] = x
        result = forward(late, w, b)
    stream.synchronize()
    np.testing.assert_array_equal(cupy.asnumpy(result), expected)
    assert forward(x, w, b, stream=stream) is not None
