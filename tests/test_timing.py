"""The statistics of the benchmark, on numbers whose answers are known, and the order in which contestants run."""

import itertools
import math

import numpy as np
import pytest

from numba_ctconv.benchmark import timing
from numba_ctconv.benchmark.timing import Call, interleaved, paired_ratio, spread


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
        monkeypatch.setattr(timing.time, "sleep", self.rests.append)

    def contestant(self, seconds, log, name):
        """One that takes so long."""

        def run():
            self.now += seconds
            log.append(name)

        return Call(run, lambda: None)


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
