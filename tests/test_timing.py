"""The statistics of the benchmark, on numbers whose answers are known, and the order in which contestants run."""

import itertools
import math

import numpy as np
import pytest

from numba_ctconv.benchmark import ceilings, timing
from numba_ctconv.benchmark.ceilings import Ceilings
from numba_ctconv.benchmark.contestants import Traffic, flops, traffic
from numba_ctconv.benchmark.measure import _ratios
from numba_ctconv.benchmark.timing import Call, Samples, interleaved, paired_ratio, rest, spread
from numba_ctconv.benchmark.workloads import CASES, Problem
from numba_ctconv.cpu import target


def test_spread_is_the_interquartile_range_over_the_median():
    assert spread([1, 2, 3, 4, 5]) == pytest.approx((4 - 2) / 3)
    assert spread([7.0] * 9) == 0
    assert spread([7.0]) == 0


def test_spread_does_not_see_an_outlier():
    assert spread([1, 2, 3, 4, 500]) == spread([1, 2, 3, 4, 5])


def test_ratio_is_paired_block_by_block():
    # the machine is three times slower in the second block, for both alike
    ratio = paired_ratio([1.0, 3.0, 1.0], [2.0, 6.0, 2.0])
    assert ratio.median == 2
    assert (ratio.low, ratio.high) == (None, None)  # three blocks say nothing with 95 %


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 1), (9, 2), (12, 3), (20, 6), (25, 8)])
def test_interval_ranks_are_those_of_the_tables(n, rank):
    """The ranks that textbooks list for the 95 % interval of a median."""
    others = [float(i) for i in range(1, n + 1)]
    ratio = paired_ratio([1.0] * n, others)
    assert (ratio.low, ratio.high) == (rank, n + 1 - rank)


def test_no_interval_below_six_values():
    assert paired_ratio([1.0] * 5, [1.0] * 5).low is None


def test_interval_covers_the_median_as_often_as_it_says():
    draws = np.exp(np.random.default_rng(0).standard_normal((2000, 9)))  # true median 1, skewed
    covered = [r.low <= 1 <= r.high for r in (paired_ratio(np.ones(9), row) for row in draws)]
    assert 0.95 <= np.mean(covered) <= 0.975  # 0.961 exactly


class Clock:
    """Time that passes only while contestants work or rest."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.rests = []
        monkeypatch.setattr(timing.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(timing, "rest", self.rests.append)

    def contestant(self, seconds, log, name):
        """One that takes so long."""

        def run():
            self.now += seconds
            log.append(name)

        return Call(run)


def test_contestants_alternate_in_blocks_after_a_pause(monkeypatch):
    clock, log, rounds = Clock(monkeypatch), [], []
    samples = interleaved(
        {"a": clock.contestant(0.01, log, "a"), "b": clock.contestant(0.05, log, "b")},
        3,
        block_seconds=0.04,
        pause=0.125,
        progress=rounds.append,
    )
    assert samples["a"].calls == 4
    assert samples["b"].calls == 1
    assert samples["a"].seconds == pytest.approx((0.01,) * 3)
    assert samples["b"].seconds == pytest.approx((0.05,) * 3)
    runs = [(name, len(list(group))) for name, group in itertools.groupby(log)]
    # two calls each to calibrate; then blocks of one untimed call and the timed ones, whoever was first being last next
    assert runs == [("a", 2), ("b", 2), ("a", 5), ("b", 4), ("a", 10), ("b", 2)]
    assert clock.rests == [0.125] * 8
    assert rounds == [0, 1, 2]


def test_threads_are_set_before_every_block(monkeypatch):
    clock, log = Clock(monkeypatch), []
    calls = {
        name: clock.contestant(1.0, log, name)._replace(set_up=lambda n=name: log.append(f"set {n}")) for name in "ab"
    }
    interleaved(calls, 1, block_seconds=1.0, pause=0.0)
    assert log == ["set a", "a", "a", "set b", "b", "b"] * 2


@pytest.mark.parametrize(("spinning", "naps"), [(0, 1), (3, 4), (100, 25)])
def test_a_rest_lasts_until_no_thread_spins(monkeypatch, spinning, naps):
    """Threads that use a whole core for so many naps, of 25 that are allowed."""
    slept = []
    monkeypatch.setattr(timing.time, "sleep", slept.append)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: sum(slept))
    monkeypatch.setattr(timing.time, "process_time", lambda: sum(slept[:spinning]))
    rest(25 * timing.NAP - 1e-9)
    assert len(slept) == naps


def test_work_that_is_only_queued_is_waited_for(monkeypatch):
    clock = Clock(monkeypatch)
    queued = []

    def finish():
        clock.now += 0.5 * len(queued)
        queued.clear()

    samples = interleaved({"gpu": Call(lambda: queued.append(0), finish)}, 2, block_seconds=1.0, pause=0.0)
    assert samples["gpu"].calls == 2
    assert samples["gpu"].seconds == pytest.approx((0.5, 0.5))
    assert math.isclose(clock.now, 2 * 0.5 + 2 * (0.5 + 1.0))


# --- ratios and ceilings ----------------------------------------------------------------------------------------------


def test_the_best_peer_is_the_faster_one_of_each_block_with_as_many_threads():
    samples = {
        ("ours", 1): Samples((8.0, 8.0, 8.0), 1),
        ("ours", 2): Samples((2.0, 4.0, 2.0), 1),
        ("torch", 1): Samples((1.0, 1.0, 1.0), 1),
        ("torch", 2): Samples((4.0, 9.0, 6.0), 1),
        ("onnxruntime", 2): Samples((6.0, 4.0, 5.0), 1),
    }
    ratios = _ratios(("ours", 2), samples)
    assert {name: ratio.median for name, ratio in ratios.items()} == {
        "torch": 2.25,
        "onnxruntime": 2.5,
        "best": 2.0,
        "one_thread": 4.0,
    }
    assert set(_ratios(("ours", 1), samples)) == {"torch", "best"}
    assert set(_ratios(("torch", 2), samples)) == {"one_thread"}


def test_the_floor_is_the_longer_of_operations_and_memory():
    limits = Ceilings(peak=1e9, loop=0.5)
    assert limits.floor(10**9) == 1.0
    assert limits.floor(10**8) == 0.5
    assert limits.better(Ceilings(peak=2e9, loop=0.6)) == Ceilings(2e9, 0.5)
    assert limits.better(None) == limits


@pytest.mark.parametrize("problem", CASES, ids=lambda problem: problem.name)
def test_operations_are_counted_where_they_reach_the_output(problem):
    left = problem.padding[0] if isinstance(problem.padding, tuple) else problem.padding
    places = np.add.outer(
        np.arange(problem.input_length) * problem.stride, np.arange(problem.kernel_size) * problem.dilation - left
    )
    reached = np.count_nonzero((places >= 0) & (places < problem.output_length))
    channels = problem.in_channels * problem.out_channels // problem.groups
    batch = 1 if problem.batch is None else problem.batch
    assert problem.flops == 2 * batch * channels * reached


def test_traffic_counts_every_array_once():
    problem = Problem("layer", 2, 3, 4, 5, 6, stride=2)
    x, w, y = 2 * 3 * 5, 3 * 4 * 6, 2 * 4 * 14
    assert traffic(problem, "forward") == Traffic((x, w), (y,))
    assert traffic(problem, "grad_input") == Traffic((y, w), (x,))
    assert traffic(problem, "grad_weight") == Traffic((y, x), (w,))
    assert traffic(problem, "gradients") == Traffic((y, x, w), (x, w))
    assert traffic(problem, "forward").bytes("float64") == 8 * (x + w + y)
    assert flops(problem, "gradients") == 2 * flops(problem, "forward")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ceilings_are_those_of_this_machine(dtype, numba_threads):
    """Wide margins: nobody computes a multiply-add in a hundredth of a cycle, or reads 40 TB/s."""
    threads = numba_threads.counts[1] if len(numba_threads.counts) > 1 else 1
    for count in {1, threads}:
        measured = ceilings.measure(Traffic((10_000, 20_000), (30_000,)), dtype, count)
        assert 1e8 < measured.peak < 2e13
        assert 60_000 * 4 / 4e13 < measured.loop < 0.1


def test_the_peak_beats_what_numpy_does(monkeypatch):
    """No vector of ten thousand numbers is multiplied and added faster than registers are."""
    monkeypatch.setattr(ceilings, "TRIES", 10)
    x, y = np.ones(10_000), np.ones(10_000)

    def seconds():
        start = timing.time.perf_counter()
        for _ in range(10):
            np.add(x, y, out=y)
        return (timing.time.perf_counter() - start) / 10

    assert ceilings.peak("float64", 1) > 2 * x.size / min(seconds() for _ in range(20)) / 2


@pytest.mark.parametrize(("width", "registers", "chains"), [(64, 32, 24), (32, 16, 12), (16, 32, 24)])
def test_the_peak_is_that_of_the_vectors_which_the_kernels_use(monkeypatch, width, registers, chains):
    asked = []

    def multiply_adds(*shape):
        asked.append(shape)
        return lambda *_: None

    monkeypatch.setattr(ceilings, "TRY_SECONDS", 0.0)
    monkeypatch.setattr(ceilings.loops, "multiply_adds", multiply_adds)
    monkeypatch.setattr(target, "vector_bytes", lambda: width)
    monkeypatch.setattr(target, "vector_registers", lambda: registers)
    for dtype in ("float32", "float64"):
        ceilings.peak(dtype, 1)
    assert asked == [(False, width // 4, chains), (True, width // 8, chains)]
