"""Pipelines on a real GPU: streams, threads, graphs, layers, and refusals by the driver.

Each test fails where the rule is broken: work that others have to wait for is held up by a kernel that sleeps, so that
a call which does not wait reads what was there before.
"""

import contextlib
import ctypes
import threading

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
from numba import cuda

import numba_ctconv as nc
from numba_ctconv.benchmark.workloads import Problem
from numba_ctconv.cuda import ENGINE, queues

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(queues.SIMULATED, reason="there is no GPU")]

PROBLEM = Problem("pipelines", 2, 12, 10, 65, 8, stride=4, padding=2)
ALGORITHMS = ENGINE.algorithms
HELD = 100  # milliseconds, about


@cuda.jit
def late_copy(source, target, milliseconds):
    """One thread copies a vector after a sleep."""
    for _ in range(milliseconds):
        cuda.nanosleep(1_000_000)
    for i in range(target.size):
        target[i] = source[i]


@pytest.fixture(autouse=True)
def compiled(forward, backward, operands):
    """Nothing is compiled or loaded later: that waits for the device."""
    x, w, b, dy = on_device(operands)
    for algorithm in ALGORITHMS:
        out = forward(x, w, b, algorithm=algorithm)
        backward(dy, x, w, algorithm=algorithm)
    flat = cuda.device_array(1, np.float32)
    late_copy[1, 1](flat, cuda.device_array(1, np.float32), 0)
    cuda.synchronize()
    return out


def on_device(operands):
    return [cuda.to_device(array) for array in operands]


def held(host, stream):
    """A device array that gets its numbers on `stream`, and only after a while; NaN until then."""
    source = cuda.to_device(host.ravel())
    flat = cuda.to_device(np.full(host.size, np.nan, host.dtype))
    cuda.synchronize()
    late_copy[1, 1, stream](source, flat, HELD)
    return flat.reshape(host.shape).bind(stream), source


def same(result, expected):
    np.testing.assert_array_equal(ENGINE.download(result), expected)


# --- streams ----------------------------------------------------------------------------------------------------------


def test_a_call_returns_while_the_gpu_works(forward, backward, operands, expected):
    """Nothing waits. With `out`, since Numba gives memory back through the driver, which does."""
    x, w, b, dy = on_device(operands)
    out = cuda.device_array_like(expected)
    gradients = nc.Gradients(*map(cuda.device_array_like, operands[:3]))
    flat, event, stream = cuda.device_array(1, np.float32), cuda.event(timing=False), cuda.stream()
    cuda.synchronize()
    late_copy[1, 1, stream](flat, flat, HELD)
    event.record(stream)
    forward(x, w, b, stream=stream, out=out)
    backward(dy, x, w, stream=stream, out=gradients)
    assert not event.query()
    stream.synchronize()
    same(out, expected)


@pytest.mark.parametrize("late", [0, 1, 2], ids=["input", "weight", "bias"])
def test_a_call_waits_for_the_stream_of_every_input(forward, operands, expected, late):
    given = on_device(operands[:3])
    given[late], _kept = held(operands[late], cuda.stream())
    same(forward(*given), expected)
    given[late], _kept = held(operands[late], cuda.stream())
    same(forward(*given, stream=cuda.stream()), expected)


def test_inputs_of_three_streams_in_a_backward_call(backward, operands):
    x, w, _, dy = operands
    exact = backward(dy, x, w)
    (dy_late, *_), (x_late, *_), (w_late, *_) = kept = [held(a, cuda.stream()) for a in (dy, x, w)]
    for gradient, on_host in zip(backward(dy_late, x_late, w_late, stream=cuda.stream()), exact, strict=True):
        same(gradient, on_host)
    assert kept


def test_a_result_is_worked_on_where_it_was_made(forward, operands, expected):
    """Its interface names the launch stream, so that the next call waits for it."""
    _, w, b = on_device(operands[:3])
    stream = cuda.stream()
    late, _kept = held(operands[0], stream)
    result = forward(late, w, b)
    assert int(result.stream) == int(stream)
    identity = np.eye(PROBLEM.out_channels, dtype=np.float32)[:, :, None]
    same(nc.conv_transpose1d(result, cuda.to_device(identity), stream=cuda.stream()), expected)


def test_the_streams_of_the_defaults(forward, operands, expected):
    x, w, b = on_device(operands[:3])
    for stream in (0, 1, 2, cuda.default_stream(), cuda.legacy_default_stream(), cuda.per_thread_default_stream()):
        result = forward(x, w, b, stream=stream)
        cuda.synchronize()
        same(result, expected)


def test_two_threads_on_two_streams(forward, backward):
    """Each thread has its own operands and stream; all results have to be those of one thread alone."""
    problems = [PROBLEM.operands(exact=False), PROBLEM.operands()]
    alone = []
    for x, w, b, dy in map(on_device, problems):
        alone.append([ENGINE.download(a) for a in (forward(x, w, b), *backward(dy, x, w))])
    failures = []
    ready = threading.Barrier(len(problems))

    def run(own, expected):
        try:
            stream = cuda.stream()
            x, w, b, dy = on_device(own)
            layer = nc.ConvTranspose1d.from_state_dict(
                {"weight": own.weight, "bias": own.bias}, **PROBLEM.parameters, device="cuda"
            )
            cuda.synchronize()
            ready.wait(30)
            for _ in range(50):
                results = [forward(x, w, b, stream=stream), *backward(dy, x, w, stream=stream), layer(x, stream=stream)]
                stream.synchronize()
                for result, exact in zip(results, [*expected, expected[0]], strict=True):
                    same(result, exact)
        except Exception as failure:  # noqa: BLE001  # shown by the test
            failures.append(failure)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(problems, alone, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_one_layer_in_two_threads_on_two_streams(operands, expected):
    """What a layer makes of its weight on its first call, on one stream, is waited for on the other."""
    x = on_device(operands)[0]
    cuda.synchronize()
    for _ in range(10):
        state = {"weight": operands.weight, "bias": operands.bias}
        layer = nc.ConvTranspose1d.from_state_dict(state, **PROBLEM.parameters, device="cuda")
        results = [None, None]
        ready = threading.Barrier(2)

        def run(place, layer=layer, results=results, ready=ready):
            stream = cuda.stream()
            ready.wait(30)
            results[place] = layer(x, stream=stream)
            stream.synchronize()

        threads = [threading.Thread(target=run, args=(place,)) for place in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            same(result, expected)


# --- graphs -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def capturing():
    """A graph builder of cuda.core in "global" mode, in which the driver refuses to allocate or to wait."""
    core = pytest.importorskip("cuda.core")
    if not hasattr(core.Device, "create_graph_builder"):
        pytest.skip("this cuda.core builds no graphs")
    device = core.Device()
    device.set_current()
    builder = device.create_graph_builder()
    builder.begin_building("global")
    graphs = []
    try:
        yield builder, graphs
    except BaseException:
        with contextlib.suppress(Exception):  # the capture is broken; the next test needs it ended
            builder.end_building()
        raise
    graphs.append(builder.end_building().complete())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_graph_holds_a_call_and_replays_it(forward, backward, operands, algorithm):
    x, w, b, dy = on_device(operands)
    out = cuda.to_device(np.full_like(operands.grad_output, np.nan))
    gradients = nc.Gradients(*(cuda.to_device(np.full_like(a, np.nan)) for a in operands[:3]))
    cuda.synchronize()
    with capturing() as (builder, graphs):
        forward(x, w, b, out=out, stream=builder, algorithm=algorithm)
        backward(dy, x, w, out=gradients, stream=builder, algorithm=algorithm)
    assert np.isnan(out.copy_to_host()).all()  # recorded, not run
    stream = cuda.stream()
    core_stream = pytest.importorskip("cuda.core").Stream.from_handle(int(stream))
    for factor in (1, 2, -3):
        changed = operands._replace(input=factor * operands.input, grad_output=factor * operands.grad_output)
        x.copy_to_device(changed.input)
        dy.copy_to_device(changed.grad_output)
        cuda.synchronize()
        graphs[0].launch(core_stream)
        stream.synchronize()
        same(out, forward(*changed[:3]))
        for gradient, exact in zip(gradients, backward(changed.grad_output, *changed[:2]), strict=True):
            same(gradient, exact)


FEW = Problem("few_tiles", 1, 600, 80, 2, 8, stride=4, padding=2)  # which "tiled" splits, in both directions


@pytest.mark.parametrize(("algorithm", "problem"), [("gather", PROBLEM), ("tiled", PROBLEM), ("tiled", FEW)])
def test_a_graph_holds_a_layer(algorithm, problem):
    operands = problem.operands()
    x, _, _, dy = on_device(operands)
    state = {"weight": operands.weight, "bias": operands.bias}
    layer = nc.ConvTranspose1d.from_state_dict(state, **problem.parameters, device="cuda", algorithm=algorithm)
    out = cuda.to_device(np.full_like(operands.grad_output, np.nan))
    into = nc.Gradients(cuda.to_device(np.full_like(operands.input, np.nan)), None, None)
    layer(x, out=out)
    layer.backward(dy, x, needs=("input",), out=into)  # packs
    expected = ENGINE.download(out), ENGINE.download(into.input)
    out.copy_to_device(np.full_like(operands.grad_output, np.nan))
    cuda.synchronize()
    with capturing() as (builder, graphs):
        layer(x, out=out, stream=builder)
        layer.backward(dy, x, needs=("input",), out=into, stream=builder)
    stream = cuda.stream()
    layer(cuda.to_device(-operands.input), stream=stream)  # has memory of its own for what it sums
    graphs[0].launch(pytest.importorskip("cuda.core").Stream.from_handle(int(stream)))
    stream.synchronize()
    same(out, expected[0])
    same(into.input, expected[1])


# --- layers -----------------------------------------------------------------------------------------------------------


def test_a_weight_assigned_while_the_old_one_is_in_use(forward, operands):
    """The old weight's memory is not given away before the calls that read it are done."""
    x, w, b, _ = operands
    layer = nc.ConvTranspose1d.from_state_dict({"weight": w, "bias": b}, **PROBLEM.parameters, device="cuda")
    stream = cuda.stream()
    results = []
    late, _kept = held(x, stream)
    for factor in (1, 2, 3):
        layer.weight = factor * w
        results.append((factor, layer(late, stream=stream)))
    stream.synchronize()
    for factor, result in results:
        same(result, forward(x, factor * w, b))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def works(forward, operands, expected):
    """A check that the next call works."""
    return lambda: same(forward(*on_device(operands[:3])), expected)


def test_more_than_the_gpu_holds(operands, works):
    x, w, b = on_device(operands[:3])
    enormous = 2**38  # samples of four bytes, in each of twenty channels
    with pytest.raises(MemoryError, match=rf"an array of {4 * 2 * PROBLEM.out_channels * enormous} bytes"):
        nc.conv_transpose1d(x, w, b, output_size=enormous, padding=(0, 0))
    works()


@contextlib.contextmanager
def stream_of_another_context():
    """A stream that the driver makes in a context beside the primary one."""
    driver = ctypes.CDLL("libcuda.so.1")
    context, stream, device = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int()
    assert driver.cuDeviceGet(ctypes.byref(device), 0) == 0
    assert driver.cuCtxCreate_v2(ctypes.byref(context), 0, device) == 0
    assert driver.cuStreamCreate(ctypes.byref(stream), 1) == 0
    assert driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p())) == 0
    try:
        yield stream.value
    finally:
        assert driver.cuCtxDestroy_v2(context) == 0


def test_a_stream_of_another_context(forward, operands, works):
    x, w, b = on_device(operands[:3])
    with stream_of_another_context() as stream:
        with pytest.raises(ValueError, match="`stream` must be a stream of device 0"):
            forward(x, w, b, stream=stream)
        works()


@pytest.mark.skipif(not queues.SIMULATED and len(cuda.gpus) < 2, reason="one GPU")
def test_two_gpus(forward, operands, expected, works):
    x, w, b = on_device(operands[:3])
    with cuda.gpus[1]:
        stream = cuda.stream()
        there = on_device(operands[:3])
        cuda.synchronize()
    with pytest.raises(ValueError, match="`weight` must live on the device of `input`, 0; got an array on device 1"):
        forward(x, there[1], b)
    with pytest.raises(ValueError, match="`stream` must be a stream of device 0"):
        forward(x, w, b, stream=stream)
    same(forward(*there), expected)  # where the arrays are, whichever GPU is current
    works()


def test_a_host_array_beside_device_arrays(forward, operands, expected, works):
    x, _, b = on_device(operands[:3])
    out = cuda.to_device(np.full_like(expected, np.nan))
    with pytest.raises(TypeError, match="must live where"):
        forward(x, operands[1], b, out=out)
    assert np.isnan(out.copy_to_host()).all()
    works()
