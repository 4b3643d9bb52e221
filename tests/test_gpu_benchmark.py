"""The benchmark of a GPU as far as it needs none: sizes, formats, and clocks and ceilings of one that is made up."""

import argparse
import contextlib
import itertools
import json
import math
import subprocess
import threading
import types

import numpy as np
import pytest

from numba_ctconv import conv_transpose1d, conv_transpose1d_backward
from numba_ctconv.benchmark import commands, draws, gpu_ceilings, graphs, on_gpu, peers, report, sanitizer, timing
from numba_ctconv.benchmark.ceilings import Ceilings
from numba_ctconv.benchmark.checking import Expected
from numba_ctconv.benchmark.contestants import traffic
from numba_ctconv.benchmark.device import Gpu
from numba_ctconv.benchmark.formats import FORMATS, TF32, chosen
from numba_ctconv.benchmark.gpu import GpuPlace, Tensors, Worker
from numba_ctconv.benchmark.graphs import Replay, flushed_bytes, timed
from numba_ctconv.benchmark.measure import measure
from numba_ctconv.benchmark.on_gpu import GpuTarget
from numba_ctconv.benchmark.progress import Progress
from numba_ctconv.benchmark.selection import Job, cut, filling, raised
from numba_ctconv.benchmark.setup import OptionError
from numba_ctconv.benchmark.timing import Call, Samples, affordable, interleaved, queueing
from numba_ctconv.benchmark.workloads import CASES, Problem, layer_problems
from numba_ctconv.cli import main

LAYER = Problem("layer", 2, 6, 4, 9, 10, stride=5, padding=3, output_padding=1, groups=2)
SINGLE = FORMATS["float32"]


class FakeGpu:
    """A GPU on which a copy moves 1e12 bytes a second, a multiply-add takes 1e-13 s, and other work what it says."""

    stream = 0

    def __init__(self):
        self.now = 0.0
        self.log = []
        self.graphs = True

    def capture(self, run):
        if not self.graphs:
            try:
                message = "operation not permitted when stream is capturing"
                raise RuntimeError(message)
            finally:
                self.log.append("capture broken")
        begin = self.now
        run()
        taken, self.now = self.now - begin, begin

        def replay():
            self.log.append("replay")
            self.now += taken

        return replay

    def flush(self):
        self.log.append("flush")
        self.now += 1.0

    def mark(self):
        return self.now

    def seconds(self, begin, end):
        return end - begin

    def wait(self):
        self.log.append("wait")

    def copy(self):
        self.now += 2e9 / 1e12
        return 2_000_000_000

    def multiply_adds(self, dtype):
        self.now += {"float32": 1e-3, "float64": 2e-3}[dtype]
        return 20_000_000_000

    def nothing(self):
        self.now += 2e-6


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["forward", "gradients"])
@pytest.mark.parametrize("problem", layer_problems(core=True, shape="train"), ids=lambda problem: problem.name)
def test_a_raised_row_fills_the_gpu_within_its_memory(problem, what):
    large = raised(problem, what, 20e9, 2**30, "float32")
    assert large == problem.with_length(large.batch, problem.input_length)
    moved = traffic(large, what).bytes("float32")
    one_more = large.with_length(large.batch + 1, large.input_length)
    if large.batch > problem.batch:
        assert moved <= 2**30
        less = large.with_length(large.batch - 1, large.input_length)
        assert less.flops < 20e9
    if large.flops < 20e9:
        assert traffic(one_more, what).bytes("float32") > 2**30


def test_a_row_that_is_large_enough_stays():
    assert raised(LAYER, "forward", 1.0, 2**30, "float32") == LAYER
    assert raised(LAYER, "forward", 1e12, 1.0, "float32") == LAYER  # its own batch, whatever memory says
    assert raised(CASES[2], "forward", 1e12, 2**30, "float32").batch is None


def test_halves_leave_room_for_twice_the_items():
    batches = [raised(LAYER, "forward", 1e18, 2**24, dtype).batch for dtype in ("float32", "float16")]
    assert batches[1] == pytest.approx(2 * batches[0], rel=1e-3)


def test_jobs_of_a_gpu_and_of_a_cpu():
    both = filling(["published", "raised"], 1e6, 2**30, "float32")(LAYER, "forward")
    assert [job.sizes for job in both] == ["published", "raised"]
    assert both[0].problem == LAYER
    assert both[1].problem.flops >= 1e6 > LAYER.flops
    assert {job.full for job in both} == {LAYER}
    assert cut(1e12)(LAYER, "forward") == [Job(LAYER, "forward", LAYER, None)]


# --- formats ----------------------------------------------------------------------------------------------------------


def rounded_by_definition(value, places):
    """The nearest number with so many binary places after the first digit, ties to even."""
    if value == 0:
        return 0.0
    unit = 2.0 ** (math.frexp(value)[1] - 1 - places)
    return float(np.rint(value / unit)) * unit  # rint is to even


@pytest.mark.parametrize(("name", "places"), [("float16", 10), ("bfloat16", 7)])
def test_halves_are_rounded_to_even(name, places):
    values = np.concatenate([np.random.default_rng(0).standard_normal(1000), [1 + 2.0**-8, 1 + 3 * 2.0**-8, 257, 2049]])
    values = values.astype(np.float32)
    result = FORMATS[name].rounded(values)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [rounded_by_definition(float(value), places) for value in values])
    assert FORMATS[name].rounded(None) is None
    assert SINGLE.rounded(values) is values


def test_bfloat16_is_that_of_ml_dtypes():
    brain = pytest.importorskip("ml_dtypes").bfloat16
    values = np.random.default_rng(1).standard_normal(10_000).astype(np.float32)
    np.testing.assert_array_equal(FORMATS["bfloat16"].rounded(values), values.astype(brain).astype(np.float32))


def test_the_format_of_a_run():
    assert chosen("float32") is SINGLE
    assert chosen("float32", "tf32") is TF32
    assert chosen("float16", "tf32") is FORMATS["float16"]


def computed(operands, kind):
    """The forward result and gradients in float64 of factors as they are, rounded once to the format."""
    x, w, b, dy = (None if a is None else a.astype(np.float64) for a in operands)
    results = {
        "output": conv_transpose1d(x, w, b, **LAYER.forward_parameters),
        **conv_transpose1d_backward(dy, x, w, **LAYER.backward_parameters)._asdict(),
    }
    return {name: kind.rounded(array.astype(kind.host)) for name, array in results.items()}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kind", [*FORMATS.values(), TF32], ids=lambda kind: f"{kind.name}-{kind.precision}")
def test_right_results_pass_in_their_format_and_nothing_less(kind, exact):
    operands = draws.operands(LAYER, kind, exact=exact, gradients=True)
    expected = Expected(LAYER, operands, exact=exact, kind=kind)
    results = computed(operands, kind)
    assert expected.first_mismatch(results) is None
    for name, array in results.items():
        off = array.copy()
        # of the largest, a unit more than a rounding can be off by; with exact sums nothing may be
        place = np.unravel_index(np.argmax(np.abs(off)), off.shape)
        off[place] *= 1 + (2 * kind.rounding or 4 * np.finfo(kind.host).eps if exact else 0.05)
        assert expected.first_mismatch({name: off}) is not None


def test_peers_may_round_while_they_add():
    kind = FORMATS["bfloat16"]
    operands = draws.operands(LAYER, kind, exact=False, gradients=True)
    expected = Expected(LAYER, operands, exact=False, kind=kind)
    result = computed(operands, kind)["output"]
    smallest = np.unravel_index(np.argmin(np.abs(result)), result.shape)
    result[smallest] += 2.0**-8  # far more than one rounding of a small number, less than one of its terms
    assert expected.first_mismatch({"output": result}) is not None
    assert expected.first_mismatch({"output": result}, loose=True) is None
    result[smallest] += 1
    assert expected.first_mismatch({"output": result}, loose=True) is not None


@pytest.mark.parametrize("kind", [*FORMATS.values(), TF32], ids=lambda kind: f"{kind.name}-{kind.precision}")
def test_operands_drawn_from_a_pool_are_the_problems_in_shape_and_the_formats_in_value(kind):
    for exact in (True, False):
        drawn = draws.operands(LAYER, kind, exact=exact, gradients=True)
        for array, own in zip(drawn, LAYER.operands(kind.host), strict=True):
            assert array.shape == own.shape
            assert array.dtype == kind.host
            np.testing.assert_array_equal(kind.rounded(array), array)
        assert np.abs(drawn.input[0] - drawn.input[1]).max() > 0  # items differ
        again = draws.operands(LAYER, kind, exact=exact, gradients=False)
        np.testing.assert_array_equal(again.input, drawn.input)
        assert again.grad_output is None
    assert draws.operands(Problem("no_bias", 1, 1, 1, 1, 1, bias=False), kind, exact=True, gradients=False).bias is None


def test_a_pool_is_repeated_with_items_that_differ(monkeypatch):
    monkeypatch.setattr(draws, "POOL", 101)
    draws._pool.cache_clear()
    drawn = draws.operands(Problem("large", 7, 3, 2, 50, 3), SINGLE, exact=False, gradients=False).input
    draws._pool.cache_clear()
    assert len({item.tobytes() for item in drawn}) == 7
    assert len(np.unique(drawn)) == 101


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_the_cache_is_overwritten_before_every_replay_and_not_counted():
    gpu = FakeGpu()

    def run():
        gpu.log.append("run")
        gpu.now += 0.25

    assert timed(gpu, run, 3) == [0.25] * 3
    assert gpu.log == ["wait", *["flush", "run"] * 4, "wait"]
    gpu.log.clear()
    assert timed(gpu, run, 1, flush=False) == [0.25]
    assert "flush" not in gpu.log


def test_the_flush_is_larger_than_the_cache():
    for cache in (0, 4 * 2**20, 60 * 2**20):
        assert flushed_bytes(cache) >= max(2 * cache, 2**20)


def test_a_replay_captures_once_what_has_run():
    gpu = FakeGpu()

    def run():
        gpu.log.append("run")
        gpu.now += 0.5

    replay = Replay(gpu, lambda: gpu.capture(run), run)
    assert replay(2) == replay(1) == 0.5
    assert replay.uncaptured is None
    assert gpu.log[:5] == ["run", "wait", "run", "wait", "run"]
    assert gpu.log.count("run") == 3
    assert gpu.log.count("replay") == 3 + 2


def test_what_can_not_be_captured_is_timed_as_it_is_queued():
    gpu = FakeGpu()
    gpu.graphs = False

    def run():
        gpu.now += 0.5

    def capture():
        try:
            return gpu.capture(run)
        except RuntimeError:
            message = "capture_end failed"
            raise ValueError(message)  # noqa: B904  # as a context manager's exit does

    replay = Replay(gpu, capture, run)
    assert replay(2) == 0.5
    assert replay.uncaptured == "RuntimeError: operation not permitted when stream is capturing"


def test_the_median_of_a_block_does_not_see_an_outlier():
    gpu, taken = FakeGpu(), itertools.cycle([0.1, 0.1, 9.0])

    def replay():
        gpu.now += next(taken)

    assert Replay(gpu, lambda: replay, lambda: None)(3) == pytest.approx(0.1)


def test_a_call_with_a_clock_is_timed_by_it(monkeypatch):
    monkeypatch.setattr(timing, "rest", lambda _: None)
    asked = []

    def clock(calls):
        asked.append(calls)
        return 0.001

    never = lambda: pytest.fail("the host ran it")  # noqa: E731
    samples = interleaved({"gpu": Call(never, clock=clock)}, 3, block_seconds=0.02, most_calls=15, pause=0.0)
    assert samples["gpu"] == Samples((0.001,) * 3, 15)
    assert asked == [1, 15, 15, 15]


def test_blocks_fit_into_a_budget(monkeypatch):
    assert affordable(9, 1.0, 100.0) == 9
    assert affordable(9, 1.0, 4.5) == 4
    assert affordable(9, 1.0, 0.1) == timing.FEWEST_BLOCKS
    assert affordable(2, 1.0, 0.1) == 2
    monkeypatch.setattr(timing, "rest", lambda _: None)
    calls = {name: Call(lambda: None, clock=lambda _, own=seconds: own) for name, seconds in (("a", 0.5), ("b", 0.25))}
    samples = interleaved(calls, 9, block_seconds=0.1, budget=6.0, pause=0.0)
    assert {len(taken.seconds) for taken in samples.values()} == {4}  # a block takes (1 + 1) calls of each


def test_the_host_is_timed_in_turn_where_work_is_only_queued():
    log = []

    def queued(name):
        return lambda calls: log.append((name, calls)) or 1e-5

    calls = {name: Call(lambda: None, queued=queued(name)) for name in "ab"} | {"c": Call(lambda: None)}
    samples = queueing(calls, {"a": 5, "b": 50, "c": 1}, 2)
    assert samples == {"a": Samples((1e-5,) * 2, 5), "b": Samples((1e-5,) * 2, 50)}
    assert log == [("a", 5), ("b", 50)] * 2


def test_the_hosts_clock_counts_no_waiting(monkeypatch):
    now = iter([10.0, 10.5])
    monkeypatch.setattr(graphs.time, "perf_counter", lambda: next(now))
    gpu, runs = FakeGpu(), []
    assert graphs.queued(gpu, lambda: runs.append(len(gpu.log)), 5) == pytest.approx(0.1)
    assert runs == [1] * 5  # after one wait, before the next
    assert gpu.log == ["wait", "wait"]


def test_calls_of_the_hosts_clock():
    assert on_gpu.host_calls(1e-6) == 50
    assert on_gpu.host_calls(timing.BLOCK_SECONDS / 10) == 10
    assert on_gpu.host_calls(1.0) == 5


# --- ceilings ---------------------------------------------------------------------------------------------------------


def test_ceilings_of_a_gpu_whose_rates_are_known():
    gpu = FakeGpu()

    def product():
        gpu.now += 1e-3
        return 10**12

    def look(kind, product):
        return gpu_ceilings.measure(gpu, kind, product, 10**9)

    assert look(SINGLE, None) == pytest.approx(Ceilings(2e13, 1e-3))
    assert look(FORMATS["float64"], None).peak == pytest.approx(1e13)
    assert look(FORMATS["float64"], product).peak == pytest.approx(1e15)
    assert look(TF32, product).peak == pytest.approx(1e15)
    assert look(FORMATS["bfloat16"], None).peak is None  # multiply-adds say nothing of tensor cores


def test_a_floor_without_a_peak_is_that_of_memory():
    assert Ceilings(None, 0.5).floor(10**18) == 0.5
    assert Ceilings(None, 0.5).better(Ceilings(None, 0.25)) == Ceilings(None, 0.25)
    assert Ceilings(None, 0.5).better(Ceilings(1e9, 0.75)) == Ceilings(1e9, 0.5)


# --- a row ------------------------------------------------------------------------------------------------------------


class Contestant:
    """Computes the right result, or what `spoil` makes of it, in so many seconds."""

    exact, cold, threads = True, False, 1

    def __init__(self, gpu, name, seconds, spoil=None, fail=None):
        self.name = name
        self._gpu, self._seconds, self._spoil, self._fail = gpu, seconds, spoil, fail

    def takes(self, problem, what, dtype):  # noqa: ARG002
        return True

    def prepare(self, problem, what, operands):  # noqa: ARG002
        def run():
            if self._fail:
                raise RuntimeError(self._fail)
            self._gpu.now += self._seconds
            output = conv_transpose1d(*operands[:3], **problem.forward_parameters)
            if self._spoil:
                output[self._spoil] += 1
            return output

        clock = Replay(self._gpu, lambda: self._gpu.capture(run), run)
        return Call(run, clock=clock, queued=lambda _: self._seconds / 10)

    def arrays(self, what, result):  # noqa: ARG002
        return {"output": result}


def outcome_of(gpu, contestants, sizes="published", budget=4.0):
    target = GpuTarget(gpu, SINGLE, None, budget)
    job = Job(LAYER, "forward", LAYER, sizes)
    return measure(job, contestants, "float32", target, blocks=6, progress=Progress())


def test_a_row_of_a_gpu_is_recorded_with_both_bounds_and_the_hosts_time():
    gpu = FakeGpu()
    contestants = [
        Contestant(gpu, name, s) for name, s in (("auto layer", 2e-3), ("torch", 6e-3), ("torch benchmark", 4e-3))
    ]
    rows, refusals = outcome_of(gpu, contestants)
    assert refusals == []
    records = [row.record() for row in rows]
    json.dumps(records)
    own = records[0]
    assert own["median"] == pytest.approx(2e-3)
    assert own["calls_per_block"] == 10
    assert own["times_torch"]["median"] == pytest.approx(3)
    assert own["times_torch_benchmark"]["low"] == pytest.approx(2)
    assert own["times_best"]["median"] == pytest.approx(2)
    assert own["peak_gflops"] == pytest.approx(2e4)
    assert own["loop_seconds"] == pytest.approx(own["bytes"] / 1e12)
    assert own["floor_seconds"] == pytest.approx(max(own["flops"] / 2e13, own["loop_seconds"]))
    assert own["of_floor"] == pytest.approx(own["floor_seconds"] / 2e-3)
    assert (own["sizes"], own["precision"], own["uncaptured"]) == ("published", "ieee", None)
    assert own["empty_seconds"] == pytest.approx(2e-6)
    assert own["host_median"] == pytest.approx(2e-4)
    assert len(own["host_seconds"]) == 6
    assert records[1]["times_best"] is None
    assert "times_onnxruntime" not in own


def test_a_raised_row_has_no_time_of_the_host():
    gpu = FakeGpu()
    record = outcome_of(gpu, [Contestant(gpu, "auto layer", 1e-3)], "raised").rows[0].record()
    assert record["host_seconds"] is record["host_median"] is None
    assert record["times_best"] is None


@pytest.mark.parametrize(
    ("flaw", "reason"),
    [
        ({"spoil": (1, 3, 0)}, "output[1, 3, 0] is"),
        ({"fail": "no algorithm found"}, "RuntimeError: no algorithm found"),
        ({"seconds": 3.0}, "a call takes 3.00 s, more than 0.33 s (--row-seconds)"),
    ],
)
def test_who_is_wrong_fails_or_is_too_slow_leaves_the_row_to_the_others(flaw, reason):
    gpu = FakeGpu()
    flawed = Contestant(gpu, "torch", **({"seconds": 2e-3} | flaw))
    rows, refusals = outcome_of(
        gpu, [Contestant(gpu, "auto layer", 1e-3), flawed, Contestant(gpu, "torch benchmark", 3e-3)]
    )
    assert [row.contestant for row in rows] == ["auto layer", "torch benchmark"]
    record = rows[0].record()
    assert record["times_torch"] is None
    assert record["times_best"]["median"] == pytest.approx(3)
    (refusal,) = refusals
    assert reason in refusal.reason
    assert str(refusal).startswith("layer, forward, published, torch: not timed:")
    assert refusal.record()["refused"] == refusal.reason


def test_nobody_is_left():
    gpu = FakeGpu()
    rows, refusals = outcome_of(gpu, [Contestant(gpu, "auto layer", 1e-3, fail="broken")])
    assert rows == []
    assert len(refusals) == 1
    rows, refusals = outcome_of(gpu, [Contestant(gpu, "auto layer", 9.0)])
    assert rows == []
    assert len(refusals) == 1


def test_a_call_that_is_not_captured_says_why():
    gpu = FakeGpu()
    target = GpuTarget(gpu, SINGLE, None, 4.0)
    gpu.graphs = False
    job = Job(LAYER, "forward", LAYER, "raised")
    own = Contestant(gpu, "auto layer", 1e-3)
    (row,), refusals = measure(job, [own], "float32", target, blocks=3, progress=Progress())
    assert refusals == []
    assert row.record()["uncaptured"].startswith("RuntimeError: operation not permitted")
    assert next(c for c in report.gpu_columns(["auto layer"]) if c.heading == "ms").cell(row.record()) == "1.000*"
    assert row.record()["median"] == pytest.approx(1e-3)


# --- torch ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("what", ["forward", "grad_input", "grad_weight", "gradients"])
@pytest.mark.parametrize("name", FORMATS)
def test_torchs_contestants_compute_in_threads_of_their_own(torch, name, what):
    """On the CPU, where tensors are as good as on a GPU, but for their clock."""
    gpu, kind = FakeGpu(), FORMATS[name]
    before = torch.backends.cudnn.benchmark
    with contextlib.ExitStack() as stack:
        stack.enter_context(peers.kept_settings(torch))
        contestants = on_gpu.torch_contestants(torch, Tensors(torch, kind), gpu, stack)
        assert [contestant.name for contestant in contestants] == list(on_gpu.PEERS)
        job = Job(LAYER, what, LAYER, "published")
        rows, refusals = (
            measure(job, contestants, name, GpuTarget(gpu, kind, None, 4.0), blocks=2, progress=Progress())
            if name == "float32"
            else ([], [])
        )
        assert refusals == []
        assert len(rows) == (2 if name == "float32" else 0)
        operands = draws.operands(LAYER, kind, exact=False, gradients=True)
        expected = Expected(LAYER, operands, exact=False, kind=kind)
        for contestant in contestants:
            call = contestant.prepare(LAYER, what, operands)
            arrays = contestant.arrays(what, call.run())
            assert expected.first_mismatch(arrays, loose=True) is None
            assert call.queued(3) > 0
    assert torch.backends.cudnn.benchmark == before


def test_a_worker_sets_up_in_its_thread_before_all_it_does():
    places = []
    worker = Worker(lambda: places.append(threading.get_ident()))
    assert worker(lambda: places.append(threading.get_ident()) or 5) == 5
    with pytest.raises(ZeroDivisionError):
        worker(lambda: 1 / 0)
    worker.close()
    assert len(places) == 3
    assert set(places) != {threading.get_ident()}
    assert len(set(places)) == 1


def test_cudnn_chooses_as_the_contestant_says(torch):
    seen = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(peers.kept_settings(torch))
        for contestant in on_gpu.torch_contestants(torch, Tensors(torch, SINGLE), FakeGpu(), stack):
            contestant._place._worker(lambda: seen.append((torch.backends.cudnn.benchmark, threading.get_ident())))
    assert [tuned for tuned, _ in seen] == [False, True]
    assert len({thread for _, thread in seen}) == 2


@pytest.mark.parametrize("tf32", [True, False])
def test_torchs_precision_is_that_of_the_run(torch, tf32):
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with peers.kept_settings(torch, tf32=tf32):
        assert torch.backends.cudnn.allow_tf32 == tf32
        assert torch.backends.cuda.matmul.allow_tf32 == tf32
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


def test_tensors_of_another_dtype_or_shape_are_seen(torch):
    operands = draws.operands(LAYER, SINGLE, exact=True, gradients=False)
    expected = Expected(LAYER, operands, exact=True)
    right = torch.from_numpy(conv_transpose1d(*operands[:3], **LAYER.forward_parameters))
    tensors = Tensors(torch, SINGLE)
    assert expected.first_mismatch({"output": tensors.take(right)}) is None
    assert "float64" in str(expected.first_mismatch({"output": tensors.take(right.double())}))
    assert "expected float32" in str(expected.first_mismatch({"output": tensors.take(right[..., 1:])}))
    right[1, 3, -1] += 1
    assert "output[1, 3," in str(expected.first_mismatch({"output": tensors.take(right)}))
    assert torch.isnan(tensors.empty((2, 3), np.float32)).all()


class RecordedTorch:
    """torch as far as a capture asks for it."""

    float32 = "float32"

    def __init__(self, log, broken=False):
        self.log, self.broken = log, broken
        self.cuda = types.SimpleNamespace(
            ExternalStream=lambda pointer: pointer, stream=self.on, CUDAGraph=self.graph, graph=self.capturing
        )

    @contextlib.contextmanager
    def on(self, stream):
        self.log.append(f"on {stream}")
        yield
        self.log.append(f"off {stream}")

    def graph(self):
        return types.SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextlib.contextmanager
    def capturing(self, graph, stream, capture_error_mode):
        assert hasattr(graph, "replay")
        self.log.append(f"capture {stream} {capture_error_mode}")
        yield
        self.log.append("captured")


def test_torch_captures_and_replays_on_the_stream_of_the_clock():
    log, gpu = [], FakeGpu()
    gpu.stream = 7
    tensors = Tensors(RecordedTorch(log), SINGLE, gpu)
    replay = tensors.capture(lambda: log.append("run"))
    assert log == ["on 7", "capture 7 thread_local", "run", "captured", "off 7"]
    log.clear()
    replay()
    assert log == ["on 7", "replay", "off 7"]
    log.clear()
    call = GpuPlace(tensors, gpu).call(lambda: log.append("run"))
    call.run()
    assert log == ["on 7", "run", "off 7"]


# --- options ----------------------------------------------------------------------------------------------------------


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--limit", "4"], "argument --limit: nothing is cut on a GPU; --raise says how far"),
        (["--threads", "1"], "argument --threads: is about a CPU"),
        (["--style", "layer cold"], "argument --style: 'layer cold' is about the caches of a CPU"),
        (["--precision", "tf32", "--dtype", "float16"], "argument --precision: 'tf32' is about float32; got --dtype"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--sizes", "tiny"], "invalid choice: 'tiny'"),
        (["--raise", "0"], "a positive float is expected; got '0'"),
    ],
)
def test_options_that_a_gpu_has_no_use_for(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(commands, "find_gpu", lambda: Gpu("GPU", "9.0", "13.0"))
    assert message in refused(["bench", "--device", "cuda", *arguments], capsys)


@pytest.mark.parametrize(
    "option", [["--sizes", "raised"], ["--raise", "1"], ["--row-seconds", "1"], ["--precision", "tf32"]]
)
def test_options_that_a_cpu_has_no_use_for(option, capsys):
    assert f"argument {option[0]}:" in refused(["bench", *option], capsys)


def test_torch_is_imported_only_where_it_is_a_peer(monkeypatch):
    monkeypatch.setattr(on_gpu.importlib, "import_module", pytest.fail)
    assert on_gpu._torch(["none"], Progress()) is None
    assert on_gpu._torch(["onnxruntime"], Progress()) is None
    cpu_only = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: False))
    monkeypatch.setattr(on_gpu.peers, "installed", lambda _: True)
    monkeypatch.setattr(on_gpu.importlib, "import_module", lambda _: cpu_only)
    assert on_gpu._torch(None, Progress()) is None


def test_bfloat16_needs_someone_who_has_it(monkeypatch):
    monkeypatch.setattr(on_gpu, "host_has", lambda _: False)
    with pytest.raises(OptionError, match="bfloat16 needs torch as a peer, or ml_dtypes"):
        on_gpu._library(None, FORMATS["bfloat16"], FakeGpu())


def test_jobs_of_options():
    options = argparse.Namespace(
        style=None, limit=None, threads=None, precision="ieee", dtype="float32", sizes=None, raise_to=1e-3
    )
    assert [job.sizes for job in on_gpu.jobs_of(options)(LAYER, "forward")] == ["published", "raised"]
    options.sizes = ["raised"]
    (job,) = on_gpu.jobs_of(options)(LAYER, "forward")
    assert job.problem.flops >= 1e6


# --- the driver and compute-sanitizer ---------------------------------------------------------------------------------

NVRM = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (root@host)\nGCC version: 12"
)


def test_the_drivers_version(monkeypatch, tmp_path):
    file = tmp_path / "version"
    monkeypatch.setattr(on_gpu, "PROC", file)
    monkeypatch.setattr(on_gpu.subprocess, "run", lambda *_, **__: types.SimpleNamespace(stdout="570.1.2\n570.1.2\n"))
    assert on_gpu.nvidia_driver() == "570.1.2"
    file.write_text(NVRM, encoding="ascii")
    assert on_gpu.nvidia_driver() == "580.159.04"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6", encoding="ascii")
    assert on_gpu.nvidia_driver() == "535.54.03"
    file.unlink()

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(on_gpu.subprocess, "run", missing)
    assert on_gpu.nvidia_driver() is None


CLEAN = "========= COMPUTE-SANITIZER\ncuda: 120 calls, all equal\n========= ERROR SUMMARY: 0 errors\n"
FOUND = (
    "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 4 bytes\n=========     at gather+0x10\n"
    "========= ERROR SUMMARY: 3 errors\n"
)
RACES = (
    "========= Error: Race reported between Write access at a+0x1 and Read access at a+0x2\n"
    "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
)


@pytest.mark.parametrize(
    ("status", "printed", "text", "wrong"),
    [
        (0, CLEAN, "nothing found", False),
        (0, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", "nothing found", False),
        (86, FOUND, "3 findings: Invalid __global__ read of size 4 bytes", True),
        (86, RACES, "1 findings: Error: Race reported between Write access", True),
        (0, RACES, "1 findings", True),
        (1, f"WRONG  plain, forward: output[0] is 1\n{CLEAN}", "results differ under it: WRONG  plain, forward", True),
        (
            2,
            "argument --device: no GPU that can be used: error 999",
            "not checked, it did not run to its end (status 2)",
            False,
        ),
        (0, "", "not checked, it did not run", False),
    ],
)
def test_what_compute_sanitizer_says(status, printed, text, wrong):
    verdict = sanitizer.verdict(status, printed)
    assert verdict.wrong == wrong
    assert text in verdict.text


def test_compute_sanitizer_that_is_missing_slow_or_broken_is_said(monkeypatch):
    monkeypatch.setattr(sanitizer, "find", lambda: None)
    assert sanitizer.run("memcheck") == ("not checked, compute-sanitizer is not installed", False)
    monkeypatch.setattr(sanitizer, "find", lambda: "/opt/compute-sanitizer")
    for failure, text in (
        (subprocess.TimeoutExpired("x", 1), f"not checked, not done after {sanitizer.LONGEST} s"),
        (PermissionError(13, "Permission denied"), "not checked, /opt/compute-sanitizer: Permission denied"),
    ):

        def run(*_, failure=failure, **__):
            raise failure

        monkeypatch.setattr(sanitizer.subprocess, "run", run)
        assert sanitizer.run("racecheck") == (text, False)


@pytest.mark.parametrize("tool", sanitizer.TOOLS)
def test_compute_sanitizer_runs_the_quick_checks(tool, monkeypatch, tmp_path):
    """A program of its name, which shows what it was called with and runs nothing."""
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\necho "$@"\necho "========= ERROR SUMMARY: 2 errors"\nexit 86\n', encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    asked = []
    whole = sanitizer.verdict
    monkeypatch.setattr(sanitizer, "verdict", lambda status, text: asked.append(text) or whole(status, text))
    assert sanitizer.run(tool).wrong
    assert f"--tool {tool} --error-exitcode 86" in asked[0]
    assert "-m numba_ctconv verify --device cuda --quick" in asked[0]
    monkeypatch.delenv("PATH")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    (tmp_path / "bin").mkdir()
    program.rename(tmp_path / "bin" / "compute-sanitizer")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert sanitizer.find() == str(tmp_path / "bin" / "compute-sanitizer")


def test_verify_goes_on_under_compute_sanitizer(monkeypatch, capsys):
    monkeypatch.setattr(commands, "find_gpu", lambda: Gpu("GPU", "9.0", "13.0"))
    monkeypatch.setattr(commands.verification, "verify", lambda *_, **__: iter(()))
    verdicts = iter([sanitizer.Verdict("nothing found", wrong=False), sanitizer.Verdict("2 findings: a", wrong=True)])
    monkeypatch.setattr(commands.sanitizer, "run", lambda _: next(verdicts))
    assert main(["verify", "--device", "cuda"]) == 1
    out = capsys.readouterr().out
    assert "cuda, memcheck: nothing found" in out
    assert "WRONG  cuda, racecheck: 2 findings: a" in out
    assert main(["verify", "--device", "cuda", "--quick"]) == 0  # asks nobody
    assert "memcheck" not in capsys.readouterr().out
