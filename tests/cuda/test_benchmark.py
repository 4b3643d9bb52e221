"""The benchmark on the CUDA engine: its graphs against a driver that writes down what it is asked, and whole commands.

Without a GPU the arrays are the simulator's and the clock the host's; with one, both are real.
"""

import contextlib
import json
import time
import types
import weakref

import numpy as np
import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
from numba import cuda

from numba_ctconv.benchmark import commands, machine, on_gpu, peers, selection, timing, verification
from numba_ctconv.benchmark.device import DeviceArrays, Gpu, find_gpu, host_has
from numba_ctconv.benchmark.formats import FORMATS
from numba_ctconv.benchmark.progress import Progress
from numba_ctconv.benchmark.workloads import CASES, Problem
from numba_ctconv.cli import main
from numba_ctconv.cuda import CudaEngine, graphs, queues, rates

simulated = pytest.mark.skipif(not queues.SIMULATED, reason="there is a GPU")
real = pytest.mark.skipif(queues.SIMULATED, reason="there is no GPU")
SUCCESS = graphs.driver.CUresult.CUDA_SUCCESS
L2 = 1000


class Driver:
    """Functions of the driver's, which are written down and answered as `answers` says, or with success."""

    def __init__(self):
        self.log = []
        self.answers = {"cuStreamCreate": 7, "cuStreamEndCapture": "graph", "cuGraphInstantiate": "executable"}
        self.failing = {}
        self.CUresult = graphs.driver.CUresult
        self.CUstream_flags = graphs.driver.CUstream_flags
        self.CUstreamCaptureMode = graphs.driver.CUstreamCaptureMode

    def cuGetErrorString(self, status):  # noqa: N802  # the driver's name
        return SUCCESS, f"error {int(status)}".encode()

    def __getattr__(self, name):
        def call(*arguments):
            self.log.append((name, *arguments))
            if name in self.failing:
                return (self.failing[name],)
            return (SUCCESS, self.answers[name]) if name in self.answers else (SUCCESS,)

        return call


@pytest.fixture
def driver(monkeypatch):
    """The driver, and what Numba says of a GPU with two multiprocessors."""
    found = Driver()
    monkeypatch.setattr(graphs, "driver", found)
    found.deferred = 0

    @contextlib.contextmanager
    def defer_cleanup():
        found.deferred += 1
        yield
        found.deferred -= 1

    memory = types.SimpleNamespace(free=16_000, total=20_000)
    numba = types.SimpleNamespace(
        current_context=lambda: types.SimpleNamespace(get_memory_info=lambda: memory),
        get_current_device=lambda: types.SimpleNamespace(L2_CACHE_SIZE=L2, MULTIPROCESSOR_COUNT=2),
        external_stream=lambda pointer: f"stream {pointer}",
        device_array=cuda.device_array, to_device=cuda.to_device, defer_cleanup=defer_cleanup,
        synchronize=lambda: found.log.append(("synchronize",)),
        event=lambda timing: types.SimpleNamespace(record=lambda stream: found.log.append(("record", timing, stream))),
    )  # fmt: skip
    monkeypatch.setattr(graphs, "cuda", numba)
    return found


@pytest.fixture
def clock(driver):
    made = graphs.Graphs(lambda cache: 2 * cache)
    assert driver.log == [("cuStreamCreate", 1)]  # one that does not wait for the default stream
    driver.log.clear()
    return made


# --- graphs -----------------------------------------------------------------------------------------------------------


@simulated
def test_a_capture_records_instantiates_and_is_launched_on_the_stream(driver, clock):
    results = []

    class Result:
        pass

    def run():
        driver.log.append("run")
        results.append(weakref.ref(result := Result()))
        return result

    replay = clock.capture(run)
    relaxed = graphs.driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
    assert driver.log == [
        ("cuStreamBeginCapture", 7, relaxed),
        "run",
        ("cuStreamEndCapture", 7),
        ("cuGraphInstantiate", "graph", 0),
        ("cuGraphDestroy", "graph"),
    ]
    assert driver.deferred == 1  # memory that the graph writes to is not given back
    assert results[0]() is not None
    driver.log.clear()
    replay()
    replay()
    assert driver.log == [("cuGraphLaunch", "executable", 7)] * 2
    driver.log.clear()
    del replay
    assert driver.log == [("cuGraphExecDestroy", "executable")]
    assert driver.deferred == 0
    assert results[0]() is None


@simulated
def test_a_capture_that_fails_ends_and_says_what_failed_first(driver, clock):
    def run():
        message = "no kernel"
        raise RuntimeError(message)

    driver.failing["cuStreamEndCapture"] = graphs.driver.CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
    with pytest.raises(RuntimeError, match="no kernel"):
        clock.capture(run)
    assert driver.log[-1] == ("cuStreamEndCapture", 7)
    assert driver.deferred == 0
    driver.failing.clear()
    with pytest.raises(RuntimeError, match="no kernel"):
        clock.capture(run)
    assert driver.log[-1] == ("cuGraphDestroy", "graph")
    driver.failing["cuGraphInstantiate"] = graphs.driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(graphs.DriverError, match="cuGraphInstantiate: error 2"):
        clock.capture(lambda: None)
    assert driver.log[-1] == ("cuGraphDestroy", "graph")
    assert driver.deferred == 0


@simulated
def test_flushes_copies_and_events_are_queued_on_the_stream(driver, clock):
    clock.flush()
    assert clock.copy() == 2 * 16_000 // graphs.PART_OF_MEMORY
    clock.mark()
    clock.wait()
    (memset, _, zero, size, on), (copy, target, source, copied, also_on), record, wait = driver.log
    assert (memset, zero, size, on) == ("cuMemsetD8Async", 0, 2 * L2, 7)
    assert (copy, copied, also_on) == ("cuMemcpyDtoDAsync", 16_000 // graphs.PART_OF_MEMORY, 7)
    assert source != target
    assert record == ("record", True, "stream 7")
    assert wait == ("synchronize",)
    assert clock.seconds(types.SimpleNamespace(elapsed_time=lambda _: 1.5), None) == 1.5e-3


@simulated
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_multiply_adds_are_as_many_as_is_said(dtype, clock, monkeypatch):
    started = []
    monkeypatch.setattr(graphs.launches, "start", lambda *given: started.append((*given[1:3], given[3:])))
    threads = 2 * graphs.BLOCKS * graphs.launch.THREADS
    assert clock.multiply_adds(dtype) == 2 * threads * graphs.ROUNDS * rates.CHAINS * rates.STEPS
    grid, queue, (rounds, constants, sums) = started[0]
    assert grid.blocks * grid.threads == threads == sums.size
    assert queue.stream == 7
    assert rounds == graphs.ROUNDS
    assert sums.dtype == constants.dtype == dtype
    clock.nothing()
    grid, _, (rounds, *_) = started[1]
    assert (grid.threads, rounds) == (graphs.launch.WARP, 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_kernel_of_multiply_adds_computes_them_all(dtype):
    """A chain that starts at c is 2 + (c - 2)/2^n after n steps."""
    rounds = 2
    sums = cuda.to_device(np.full(5, np.nan, dtype))
    rates.multiply_adds[1, 8](rounds, cuda.to_device(np.array([0.5, 1.0, 1e9], dtype)), sums)
    steps = rounds * rates.STEPS
    exact = sum(2 + (1e9 + chain - 2) / 2**steps for chain in range(rates.CHAINS))
    np.testing.assert_allclose(sums.copy_to_host(), exact, rtol=1e-6)


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_arrays_of_a_format_go_there_and_back(name):
    kind = FORMATS[name]
    if not host_has(kind):
        pytest.skip("NumPy has no bfloat16")
    memory = DeviceArrays(kind)
    host = kind.rounded(np.random.default_rng(0).standard_normal((2, 3, 5)).astype(kind.host))
    array = memory.put(host)
    assert array.dtype.name == name
    back = memory.take(array)
    assert back.dtype == kind.host
    np.testing.assert_array_equal(back, host)
    assert np.isnan(memory.take(memory.empty((4,), kind.host))).all()
    assert memory.put(None) is memory.take(None) is None
    other = FORMATS["float64" if name != "float64" else "float32"]
    assert memory.take(DeviceArrays(other).put(host)).dtype.name == other.name


# --- commands ---------------------------------------------------------------------------------------------------------


class HostClock:
    """The host's clock in the place of a GPU's: the simulator waits for everything."""

    stream = 0

    def capture(self, run):
        return run

    def flush(self):
        pass

    def mark(self):
        return time.perf_counter()

    def seconds(self, begin, end):
        return max(end - begin, 1e-9)

    def wait(self):
        pass

    def copy(self):
        return 1000

    def multiply_adds(self, dtype):
        assert dtype in ("float32", "float64")
        return 1000

    def nothing(self):
        pass


ROWS = (
    {"id": "a/plain", "cin": 4, "cout": 2, "k": 4, "s": 2, "p": 1, "op": 0, "g": 1, "d": 1, "bias": True, "core": True,
     "train": [2, 3], "infer": [1, 5], "src": ""},
    {"id": "a/depthwise", "cin": 2, "cout": 2, "k": 3, "s": 1, "p": 1, "op": 0, "g": 2, "d": 1, "bias": False,
     "core": True, "train": None, "infer": [1, 6], "src": ""},
)  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    """Commands that take what the tests run on for a GPU; small rows, short blocks."""
    monkeypatch.setattr(commands, "find_gpu", lambda: Gpu("a GPU", "9.0", "13.0"))
    monkeypatch.setattr(selection, "layers", lambda: ROWS)
    monkeypatch.setattr(timing, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(on_gpu, "MOST_REPLAYS", 1)
    monkeypatch.setattr(on_gpu, "HOST_CALLS", (1, 1))
    if queues.SIMULATED:
        monkeypatch.setattr(machine, "find_gpu", lambda: Gpu("a GPU", "9.0", "13.0"))
        monkeypatch.setattr(on_gpu, "graphs", HostClock)
        monkeypatch.setattr(peers, "installed", lambda _: False)


RUN = ["bench", "--device", "cuda", "--raise", "1e-6", "--blocks", "2"]


def records(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("style", ["function", "layer", "layer out"])
def test_bench_times_rows_as_published_and_raised(style, tmp_path, capsys):
    file, markdown = tmp_path / "run.jsonl", tmp_path / "run.md"
    options = ["--json", str(file), "--markdown", str(markdown), "--style", style]
    assert main([*RUN, *options, "--algorithm", "auto", "--algorithm", "gather"]) == 0
    out = capsys.readouterr().out
    head, *rows = records(file)
    options = head["options"]
    assert (options["device"], options["precision"], options["raise_gflop"]) == ("cuda", "ieee", 1e-6)
    assert options["arrays"] == ("numba" if queues.SIMULATED else "torch")
    assert "nvidia_driver" in head["machine"]
    own = [row for row in rows if not row["contestant"].startswith("torch")]
    names = [name if style == "function" else f"{name} {style}" for name in ("auto", "gather")]
    assert [(row["row"], row["sizes"], row["contestant"]) for row in own] == [
        (name, sizes, contestant) for name in ("a/plain", "a/depthwise") for sizes in ("published", "raised")
        for contestant in names
    ]  # fmt: skip
    for row in own:
        assert row["dtype"] == "float32"
        assert row["precision"] == "ieee"
        assert len(row["seconds"]) == 2
        assert (row["host_median"] is not None) == (row["sizes"] == "published")
        assert row["uncaptured"] is None
        assert row["flops"] >= 1000 * (row["sizes"] == "raised")
        assert row["batch"] > 1 or row["sizes"] == "published"
        assert row["of_floor"] > 0
    assert "of copy" in out
    assert out.splitlines()[0].startswith("a GPU, compute capability 9.0, driver ") or not queues.SIMULATED
    assert markdown.read_text(encoding="utf-8").count("| a/plain |") == len(rows) / 2
    assert main(["report", str(file), "--contestant", names[0]]) == 0
    table = capsys.readouterr().out
    assert "float32 (ieee), batches raised to 1e-06 GFLOP, medians of 2 blocks." in table
    assert table.count("| a/depthwise | published | 1 × 6 |") == 1
    assert main([*RUN, "a/plain", "--style", style, "--dtype", "float64", "--json", str(file)]) == 0
    capsys.readouterr()
    assert main(["report", str(file), "--contestant", names[0]]) == 0
    table = capsys.readouterr().out
    assert "float32 (ieee) and float64, batches raised" in table
    assert table.count("| a/plain | float64 | raised | ") == table.count("| a/plain | float32 (ieee) | raised | ") == 1


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_bench_measures_gradients_and_halves(dtype, tmp_path):
    if not host_has(FORMATS[dtype]):
        pytest.skip("NumPy has no bfloat16")
    file = tmp_path / "run.jsonl"
    passes = ["--pass", "forward,gradients", "--sizes", "raised"]
    assert main([*RUN, "a/plain", "--dtype", dtype, *passes, "--json", str(file)]) == 0
    own = [row for row in records(file)[1:] if row["contestant"] == "auto layer"]
    assert [(row["pass"], row["dtype"]) for row in own] == [("forward", dtype), ("gradients", dtype)]
    itemsize = FORMATS[dtype].itemsize
    x, w, y = (row["batch"] * n for row, n in ((own[0], 4 * 5), (own[0], 0), (own[0], 2 * 10)))
    assert own[0]["bytes"] == itemsize * (x + w + 4 * 2 * 4 + y)
    if queues.SIMULATED:  # there is no product of torch's to compare halves with
        assert (own[0]["peak_gflops"] is None) == (dtype != "float64")


@pytest.mark.usefixtures("gpu")
def test_bench_refuses_what_is_wrong_and_goes_on(monkeypatch, tmp_path, capsys):
    right = CudaEngine.forward

    def broken(self, *arguments):
        if arguments[5] == "scatter":
            message = "no such kernel"
            raise RuntimeError(message)
        right(self, *arguments)

    monkeypatch.setattr(CudaEngine, "forward", broken)
    file = tmp_path / "run.jsonl"
    algorithms = ["--algorithm", "auto", "--algorithm", "scatter"]
    assert main([*RUN, "a/plain", "--sizes", "published", *algorithms, "--json", str(file)]) == 1
    _, refusal, *rows = records(file)
    assert refusal == {
        "row": "a/plain", "pass": "forward", "sizes": "published", "contestant": "scatter layer",
        "refused": "RuntimeError: no such kernel",
    }  # fmt: skip
    assert rows[0]["contestant"] == "auto layer"
    assert "a/plain, forward, published, scatter layer: not timed: RuntimeError" in capsys.readouterr().err
    assert main(["report", str(file)]) == 0


@pytest.mark.usefixtures("gpu")
def test_verify_checks_every_format_of_the_engine(monkeypatch, capsys):
    few = [CASES[0], Problem("grouped", 1, 2, 2, 3, 3, stride=2, groups=2)]
    monkeypatch.setattr(verification, "quick_problems", lambda: few)
    monkeypatch.setattr(verification, "QUICK_ALGORITHMS", ("gather", "scatter"))  # the emulator is slow
    assert main(["verify", "--device", "cuda", "--quick"]) == 0
    runs = 2 + 2 + 1 + host_has(FORMATS["bfloat16"])  # float32, float64, and halves, which are not scattered
    assert f"cuda: {2 * 2 * runs} calls, all equal to the reference, bit by bit" in capsys.readouterr().out


@pytest.mark.usefixtures("gpu")
def test_verify_sees_a_half_that_is_wrong(monkeypatch):
    right = CudaEngine.forward

    def forward(self, *arguments):
        right(self, *arguments)
        if arguments[-1].dtype == np.float16:
            arguments[-1].copy_to_device(-np.abs(self.download(arguments[-1])))

    monkeypatch.setattr(CudaEngine, "forward", forward)
    found = list(verification.verify("cuda", Progress(), among=CASES[:1], algorithms=("auto",)))
    assert {outcome.name for outcome in found if outcome.wrong} == {"plain, forward, cuda, auto, float16"}


@real
@pytest.mark.gpu
def test_a_gpus_clock():
    """Rates of a real GPU, within wide margins, and a graph whose time grows with what is in it."""
    assert isinstance(find_gpu(), Gpu)
    clock = on_gpu.graphs()
    short, long = (clock.capture(lambda n=n: [clock.multiply_adds("float32") for _ in range(n)]) for n in (1, 4))
    one, four = (min(on_gpu.timed(clock, replay, 5)) for replay in (short, long))
    assert 3 < four / one < 5
    assert 1e12 < clock.multiply_adds("float32") / one < 2e14
