"""From the number of results to the shape of a launch: plain integers, so that it is tested without a GPU.

The engine asks here; the kernels' loops stride over the grid, so that any configuration covers every element once.
"""

from typing import NamedTuple

WARP = 32
THREADS = 256
# Fewer blocks leave most of a large chip idle, and Numba warns of them; a block that finds no element returns at once.
FEWEST_BLOCKS = 128
# Well under the limit of 2**31 - 1 and enough to fill any chip; the rest is covered by striding.
MOST_BLOCKS = 2**16
# Threads that share one sum. Fixed, because it decides the order in which the sum is added up.
LANES = 128


class Configuration(NamedTuple):
    """A one-dimensional grid; no blocks where there is nothing to do."""

    blocks: int
    threads: int


def thread_each(elements: int) -> Configuration:
    """One thread an element; few elements in small blocks, so that they spread over the chip."""
    warps = -(-elements // (WARP * FEWEST_BLOCKS))
    threads = min(max(warps, 1) * WARP, THREADS)
    return Configuration(_blocks(-(-elements // threads)), threads)


def block_each(sums: int) -> Configuration:
    """One block of LANES threads a sum."""
    return Configuration(_blocks(sums), LANES)


def _blocks(wanted: int) -> int:
    return min(max(wanted, FEWEST_BLOCKS), MOST_BLOCKS) if wanted else 0
