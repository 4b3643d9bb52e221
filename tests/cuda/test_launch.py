"""Launch configurations: limits of the grid, and that striding over it covers every element once."""

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

from numba_ctconv.cuda import launch


@pytest.fixture(autouse=True)
def launches():
    """The real sizes: nothing is launched here."""


CONFIGURATIONS = [launch.thread_each, launch.block_each]


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_nothing_to_do_launches_nothing(configuration):
    assert configuration(0).blocks == 0


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
@pytest.mark.parametrize("count", [1, 127, 128, 255, 256, 257, 32_769, 2**24 + 1, 2**31, 2**40])
def test_the_grid_stays_within_the_limits_of_the_hardware(configuration, count):
    blocks, threads = configuration(count)
    assert 1 <= threads <= 1024
    assert launch.FEWEST_BLOCKS <= blocks <= 2**31 - 1


def test_a_thread_an_element_until_the_grid_is_full():
    for count in (32_768, 100_000, launch.MOST_BLOCKS * launch.THREADS):
        blocks, threads = launch.thread_each(count)
        assert (blocks - 1) * threads < count <= blocks * threads
    assert launch.thread_each(2**40).blocks == launch.MOST_BLOCKS


@pytest.mark.parametrize(("count", "threads"), [(1, 32), (4096, 32), (4097, 64), (32_768, 256), (2**20, 256)])
def test_few_elements_go_in_small_blocks(count, threads):
    assert launch.thread_each(count).threads == threads


def test_a_block_a_sum_until_the_grid_is_full():
    assert launch.block_each(1000) == (1000, launch.LANES)
    assert launch.block_each(2**40) == (launch.MOST_BLOCKS, launch.LANES)


@pytest.mark.parametrize("threads", [1, 3, 32, 100])
@pytest.mark.parametrize("count", [1, 2, 99, 100, 1000, 1001])
def test_striding_covers_every_element_once(monkeypatch, threads, count):
    """What the kernels' range(grid(1), size, gridsize(1)) visits, with a grid too small for one thread an element."""
    monkeypatch.setattr(launch, "THREADS", threads)
    monkeypatch.setattr(launch, "FEWEST_BLOCKS", 2)
    monkeypatch.setattr(launch, "MOST_BLOCKS", 4)
    blocks, threads = launch.thread_each(count)
    visited = [e for first in range(blocks * threads) for e in range(first, count, blocks * threads)]
    assert sorted(visited) == list(range(count))
