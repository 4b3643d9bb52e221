"""Device arrays of any library: views, refusals, producers, devices and streams."""

import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
from numba import cuda

from numba_ctconv import ConvTranspose1d, conv_transpose1d
from numba_ctconv.benchmark.workloads import Problem
from numba_ctconv.cuda import ENGINE, arrays, launches, producers, queues

PROBLEM = Problem("arrays", 2, 3, 4, 5, 4, stride=2, padding=1)


class Foreign:
    """A device array of a library that nobody knows: the view `part` of `base`, which `memory` holds or is made to."""

    def __init__(self, base, part=None, *, memory=None, stream=None, read_only=False, mask=None):
        part = base if part is None else part
        self.memory = cuda.to_device(base) if memory is None else memory
        offset = part.__array_interface__["data"][0] - base.__array_interface__["data"][0]
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": part.shape,
            "strides": part.strides,
            "typestr": part.dtype.str,
            "data": (arrays.memory_of(self.memory).address + offset, read_only),
            "stream": stream,
            "mask": mask,
        }


def strided(host):
    """A few layouts of the same numbers, by name: pairs of base and view."""
    wide = np.full((*host.shape[:-1], 3 * host.shape[-1] + 1), np.nan, host.dtype)
    wide[..., 1::3] = host
    backwards = np.ascontiguousarray(host[..., ::-1])
    transposed = np.ascontiguousarray(host.T)
    return {
        "sliced": (wide, wide[..., 1::3]),
        "negative": (backwards, backwards[..., ::-1]),
        "transposed": (transposed, transposed.T),
    }


# --- views ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["sliced", "negative", "transposed"])
def test_any_strides(forward, backward, operands, expected, layout):
    x, w, b, dy = (Foreign(*strided(a)[layout], read_only=True) for a in operands)
    np.testing.assert_array_equal(forward(x, w, b).copy_to_host(), expected)
    gradients = backward(dy, x, w)
    on_host = backward(operands[3], *operands[:2])
    for gradient, exact in zip(gradients, on_host, strict=True):
        np.testing.assert_array_equal(gradient.copy_to_host(), exact)


def test_strides_of_zero(forward, operands):
    _, w, b, _ = operands
    row = np.arange(5, dtype=np.float32)
    x = np.broadcast_to(row, (2, 3, 5))
    one = np.array([2.0], np.float32)
    device = forward(Foreign(row, x), Foreign(w), Foreign(one, np.broadcast_to(one, 4)))
    np.testing.assert_array_equal(device.copy_to_host(), forward(x, w, np.full_like(b, 2)))


def test_unbatched_and_strided(forward, operands):
    x, w, b, _ = operands
    base, part = strided(x[0])["sliced"]
    result = forward(Foreign(base, part), Foreign(w), Foreign(b))
    np.testing.assert_array_equal(result.copy_to_host(), forward(x[0], w, b))


@pytest.mark.parametrize("layout", ["sliced", "negative", "transposed"])
@pytest.mark.parametrize("algorithm", ["gather", "scatter"])
def test_a_strided_out_is_written_where_it_is_and_nowhere_else(forward, operands, expected, layout, algorithm):
    x, w, b, _ = operands
    base, part = strided(np.full_like(expected, np.nan))[layout]
    out = Foreign(base, part)
    assert forward(*map(cuda.to_device, (x, w, b)), out=out, algorithm=algorithm) is out
    np.testing.assert_array_equal(ENGINE.download(out), expected)
    assert np.isnan(out.memory.copy_to_host()).sum() == base.size - part.size


def test_inputs_are_not_written(forward, backward, operands):
    given = [cuda.to_device(a) for a in operands]
    forward(*given[:3], algorithm="scatter")
    backward(given[3], *given[:2], algorithm="scatter")
    for array, host in zip(given, operands, strict=True):
        np.testing.assert_array_equal(array.copy_to_host(), host)


def test_overlap_is_of_address_ranges():
    base = np.zeros(12, np.float32)
    memory = cuda.to_device(base)

    def part(of):
        return ENGINE.operands({"a": Foreign(base, of, memory=memory)})["a"]

    def overlap(one, other):
        others = {"none": None, "empty": part(base[6:6]), "other": part(other)}
        return ENGINE.overlapped(part(one), others) == "other"

    assert overlap(base[:6], base[5:])
    assert not overlap(base[:6], base[6:])
    assert overlap(base[::2], base[1::2])  # conservative
    assert overlap(base[5::-1], base[:1])
    assert not overlap(base[6:6], base)


def test_transfers():
    host = np.arange(24, dtype=np.float64).reshape(2, 3, 4)
    device = ENGINE.upload(host)
    copied = ENGINE.copy(device)
    np.testing.assert_array_equal(ENGINE.download(device), host)
    np.testing.assert_array_equal(copied.copy_to_host(), host)
    assert ENGINE.overlapped(device, {"copied": copied}) is None
    for base, part in strided(host).values():
        np.testing.assert_array_equal(ENGINE.copy(Foreign(base, part)).copy_to_host(), host)
    np.testing.assert_array_equal(ENGINE.download(ENGINE.upload(host[0, 0, ::-1])), host[0, 0, ::-1])


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_refuses_host_beside_device(forward, operands):
    x, w, b, _ = operands
    with pytest.raises(TypeError, match="`input` must live where `weight` does"):
        forward(cuda.to_device(x), w, b)


def test_refuses_two_devices(forward, operands, monkeypatch):
    x, w, b = (Foreign(a) for a in operands[:3])
    monkeypatch.setattr(queues, "one_gpu", lambda: False)
    monkeypatch.setattr(producers, "device", lambda view: 1 if arrays.owner_of(view) is w else 0)
    with pytest.raises(ValueError, match="`weight` must live on the device of `input`, 0; got an array on device 1"):
        forward(x, w, b)


@pytest.mark.parametrize("dtype", [np.int32, np.complex64, ">f4", ">f2"])
def test_refuses_other_dtypes(forward, operands, dtype):
    x, w, b, _ = operands
    with pytest.raises(TypeError, match="`weight` must be a float16, bfloat16, float32 or float64 array in native"):
        forward(Foreign(x), Foreign(w.astype(dtype)), Foreign(b))


def test_refuses_mixed_dtypes(forward, operands):
    x, w, b, _ = operands
    with pytest.raises(TypeError, match="`weight` must have the dtype of `input`"):
        forward(Foreign(x), Foreign(w.astype(np.float64)), Foreign(b))


def test_refuses_unaligned_arrays(forward, operands):
    x, w, b, _ = operands
    base = np.zeros(x.nbytes + 1, np.uint8)
    with pytest.raises(ValueError, match="`input` must lie at a multiple of its element size"):
        forward(Foreign(base, base[1:].view(np.float32).reshape(x.shape)), Foreign(w), Foreign(b))


def test_refuses_masks(forward, operands):
    x, w, b, _ = operands
    with pytest.raises(TypeError, match=r"`bias` must be a plain array"):
        forward(Foreign(x), Foreign(w), Foreign(b, mask=Foreign(np.ones(4, bool))))


def test_refuses_a_read_only_out(forward, operands, expected):
    x, w, b = (Foreign(a) for a in operands[:3])
    with pytest.raises(ValueError, match="`out` must be writeable"):
        forward(x, w, b, out=Foreign(np.zeros_like(expected), read_only=True))


def test_refuses_an_overlapping_out(forward, operands, expected):
    x, w, b, _ = operands
    base = np.zeros(x.size - 1 + expected.size, np.float32)
    given = Foreign(base, base[: x.size].reshape(x.shape))
    out = Foreign(base, base[x.size - 1 :].reshape(expected.shape), memory=given.memory)
    with pytest.raises(ValueError, match=r"`out` must not overlap another argument; .*`input`"):
        forward(given, Foreign(w), Foreign(b), out=out)


@pytest.mark.parametrize("stream", [object(), "0", 1.5, True, -1, SimpleNamespace(ptr=None)])
def test_refuses_what_is_no_stream(forward, operands, stream):
    with pytest.raises(TypeError, match="`stream` must be an integer, a Numba, CuPy or torch stream"):
        forward(*(Foreign(a) for a in operands[:3]), stream=stream)


def test_refuses_a_stream_beside_host_arrays(forward, operands):
    with pytest.raises(TypeError, match="`stream` must be None with NumPy arrays"):
        forward(*operands[:3], stream=0)


@pytest.mark.skipif(not queues.SIMULATED, reason="there is a GPU")
def test_device_arrays_without_a_gpu_say_what_is_missing():
    program = """
import numba_ctconv
class Foreign:
    __cuda_array_interface__ = {"version": 3, "shape": (1, 1, 1), "typestr": "<f4", "data": (4096, False)}
try:
    numba_ctconv.conv_transpose1d(Foreign(), Foreign())
except TypeError as error:
    print(error)
"""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert "`input` must be a NumPy array where numba.cuda can't be used" in done.stdout
    assert "Numba finds no GPU it can use" in done.stdout


# --- streams ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def waits(monkeypatch):
    """The waits of a call, as pairs of queue and stream; none is carried out, and no stream has to exist."""
    recorded = []
    monkeypatch.setattr(queues, "wait", lambda queue, pointer: recorded.append((queue, pointer)))
    return recorded


def value(stream):
    return Foreign(np.zeros(3, np.float32), stream=stream)


def test_the_first_value_decides_and_the_others_are_waited_for(waits):
    queue = producers.queue_of(None, {"input": value(64), "weight": value(96), "bias": None, "more": value(64)})
    assert queue == queues.Queue(0, 64)
    assert waits == [(queue, 96)]


def test_no_stream_means_the_default_one_and_no_wait(waits):
    assert producers.queue_of(None, {"input": value(None), "weight": value(None)}).stream == 0
    assert producers.queue_of(None, {"input": value(1), "weight": value(1)}).stream == 0  # its other pointer
    assert producers.queue_of(96, {"input": value(None)}).stream == 96
    assert not waits


def test_a_given_stream_waits_for_every_producer_once(waits):
    queue = producers.queue_of(96, {"input": value(64), "weight": value(64), "bias": value(96), "more": value(1)})
    assert queue.stream == 96
    assert sorted(waits) == [(queue, 0), (queue, 64)]


@pytest.mark.parametrize(
    "stream",
    [
        96,
        np.uint64(96),
        SimpleNamespace(ptr=96),  # CuPy
        SimpleNamespace(cuda_stream=96),  # torch
        SimpleNamespace(__cuda_stream__=lambda: (0, 96), ptr=7),
    ],
)
@pytest.mark.usefixtures("waits")
def test_streams_of_any_library(stream):
    assert producers.queue_of(stream, {"input": value(None)}).stream == 96


def test_a_stream_of_numba(forward, operands, expected):
    x, w, b = (cuda.to_device(a) for a in operands[:3])
    cuda.default_stream().synchronize()
    stream = cuda.stream()
    result = forward(x, w, b, stream=stream)
    stream.synchronize()
    np.testing.assert_array_equal(result.copy_to_host(), expected)


# --- producers --------------------------------------------------------------------------------------------------------


class FakeTorch(SimpleNamespace):
    """As much of torch as is asked, over Foreign memory; keeps a log."""

    def __init__(self, current):
        log = []

        class Tensor:
            """Has no interface: torch's is slow, and what it says is read off its attributes."""

            is_cuda, requires_grad, layout = True, False, "strided"
            device = SimpleNamespace(index=0)

            def __init__(self, host):
                self.foreign = Foreign(host)
                self.shape, self.dtype = host.shape, f"torch.{host.dtype.name}"
                self.stride = lambda: tuple(step // host.itemsize for step in host.strides)
                self.data_ptr = lambda: self.foreign.__cuda_array_interface__["data"][0]
                self.is_neg = lambda: False

            def record_stream(self, stream):
                log.append(("record_stream", stream))

        @contextlib.contextmanager
        def use(stream):
            log.append(("stream", stream))
            yield

        def empty(shape, dtype, device):
            log.append(("empty", dtype, device))
            return Tensor(np.full(shape, np.nan, dtype))

        streams = SimpleNamespace(
            current_stream=lambda _: SimpleNamespace(cuda_stream=current),
            ExternalStream=lambda pointer, device: pointer if device == "cuda:0" else None,
            stream=use,
        )
        super().__init__(Tensor=Tensor, cuda=streams, empty=empty, float32="float32", strided="strided", log=log)


def test_torch_allocates_on_the_launch_stream(forward, operands, expected, waits, monkeypatch):
    monkeypatch.setattr(queues, "stream_of", lambda _: 0)
    torch = FakeTorch(current=64)
    monkeypatch.setitem(sys.modules, "torch", torch)
    result = forward(*map(torch.Tensor, operands[:3]))
    assert isinstance(result, torch.Tensor)
    assert torch.log == [("stream", 64), ("empty", "float32", "cuda:0")]
    assert not waits
    np.testing.assert_array_equal(ENGINE.download(result), expected)


def test_torch_keeps_memory_that_another_stream_uses(forward, operands, waits, monkeypatch):
    monkeypatch.setattr(queues, "stream_of", lambda _: 0)
    torch = FakeTorch(current=64)
    monkeypatch.setitem(sys.modules, "torch", torch)
    x, w, b, _ = operands
    forward(torch.Tensor(x), torch.Tensor(w), Foreign(b), stream=96)
    assert torch.log == [("record_stream", 96), ("record_stream", 96), ("stream", 96), ("empty", "float32", "cuda:0")]
    assert waits == [(queues.Queue(0, 96), 64)]


def test_torch_allocates_what_a_split_product_leaves_in_memory(monkeypatch):
    monkeypatch.setattr(queues, "stream_of", lambda _: 0)
    torch = FakeTorch(current=64)
    monkeypatch.setitem(sys.modules, "torch", torch)
    problem = Problem("split", 1, 300, 4, 2, 4, stride=2)
    operands = problem.operands()
    result = conv_transpose1d(*map(torch.Tensor, operands[:3]), stride=2, algorithm="tiled")
    assert torch.log == 3 * [("stream", 64), ("empty", "float32", "cuda:0")]  # the output, panels, partial sums
    np.testing.assert_array_equal(ENGINE.download(result), conv_transpose1d(*operands[:3], stride=2))


@pytest.mark.skipif(not queues.SIMULATED, reason="the streams do not exist")
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("library", ["torch", "unknown"])
def test_a_layer_copies_a_parameter_on_its_stream_and_waits_for_that(operands, monkeypatch, library, name):
    log = []

    def stream_of(pointer):
        return SimpleNamespace(synchronize=lambda: log.append(("synchronize", pointer)))

    def run(prepared, queue, *given):
        log.append(("launch", queue.stream))
        launch(prepared, queue, *given)

    launch = launches.run
    monkeypatch.setattr(queues, "stream_of", stream_of)
    monkeypatch.setattr(launches, "run", run)
    torch = FakeTorch(current=64)
    monkeypatch.setitem(sys.modules, "torch", torch)
    layer = ConvTranspose1d(3, 4, 4, device="cuda")
    host = operands[1] if name == "weight" else operands[2]
    setattr(layer, name, torch.Tensor(host) if library == "torch" else Foreign(host, stream=64))
    assert log == [("launch", 64), ("synchronize", 64)]
    np.testing.assert_array_equal(ENGINE.download(getattr(layer, name)), host)


def test_cupy_allocates_on_the_launch_stream(forward, operands, expected, monkeypatch):
    log = []

    class Array(Foreign):
        device = SimpleNamespace(id=0)

    @contextlib.contextmanager
    def entered(name, number):
        log.append((name, number))
        yield

    cupy = SimpleNamespace(
        ndarray=Array,
        cuda=SimpleNamespace(Device=lambda n: entered("device", n), ExternalStream=lambda p: entered("stream", p)),
        empty=lambda shape, dtype: Array(np.full(shape, np.nan, dtype)),
    )
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    result = forward(*(Array(a, stream=1) for a in operands[:3]))
    assert isinstance(result, Array)
    assert log == [("device", 0), ("stream", 0)]
    np.testing.assert_array_equal(ENGINE.download(result), expected)


def test_unknown_libraries_get_numba_arrays(forward, operands, expected):
    result = forward(*(Foreign(a) for a in operands[:3]))
    assert type(result) is type(cuda.device_array(1))
    np.testing.assert_array_equal(result.copy_to_host(), expected)


def test_no_library_is_imported():
    program = """
import sys
import numpy, numba_ctconv
from numba import cuda
x = cuda.to_device(numpy.ones((1, 1, 1), numpy.float32))
numba_ctconv.conv_transpose1d(x, x)
assert not {"torch", "cupy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(queues.SIMULATED, reason="the simulator compiles nothing")
def test_layouts_share_one_compilation(forward, operands):
    from numba_ctconv.cuda.forward import gather  # noqa: PLC0415

    forward(*(cuda.to_device(a) for a in operands[:3]))
    compiled = len(gather.overloads)
    for layout in ("sliced", "negative", "transposed"):
        forward(*(Foreign(*strided(a)[layout], read_only=True) for a in operands[:3]))
    assert len(gather.overloads) == compiled


# --- workspace --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not queues.SIMULATED, reason="the streams do not exist")
def test_a_stream_keeps_its_workspace_and_few_streams_do(monkeypatch):
    """The next call on a stream gets the memory of the last, but of streams that may be gone only the latest count."""
    monkeypatch.setattr(producers, "_given_back", {})
    like, form = cuda.to_device(np.zeros(1, np.float32)), arrays.contiguous_form(np.dtype(np.float32), (3, 5))

    def address(stream):
        with producers.borrowed(form, like, queues.Queue(0, stream), None) as own:
            assert own.shape == (3, 5)
            return arrays.memory_of(own).address

    first = address(64)
    assert address(64) == first
    for stream in range(100, 100 + 2 * producers.KEPT_MEMORIES):
        address(stream)
    assert list(producers._given_back) == [
        queues.Queue(0, 100 + producers.KEPT_MEMORIES + k) for k in range(producers.KEPT_MEMORIES)
    ]
