"""What tiles ask for while they sum up terms: the samples that are packed next, of which no prefetcher can know.

They are listed in a worker's scratch memory, an address for some lines of the cache. Of all tiles that come before the
packing, the last ones take the list from its beginning to its end, an address with each block of their terms.
"""

from typing import NamedTuple

from .compilation import helper, part
from .intrinsics import address_of, store_integer
from .target import CACHE_LINE

LINES_ASKED = 16  # from an address on: as many as may be on their way at a time
BYTES_ASKED = LINES_ASKED * CACHE_LINE
# of slabs and sums, beside which the samples that are packed next find room in the second-level cache
MOST_KEPT_BYTES = 640 * 1024


class Asked(NamedTuple):
    """Which tiles take which part of a list."""

    at: int  # address of the list
    size: int  # of a tile's part, in bytes
    first: int  # number of the first tile that takes one, in the order in which tiles come


def list_size(rows: list[tuple[int, int]], blocks: int, itemsize: int) -> int:
    """Elements, in whole lines, of a list for (how many, bytes of each) rows and tiles of so many blocks of terms."""
    addresses = sum(count * -(-size // BYTES_ASKED) for count, size in rows) + blocks
    return -(-addresses * 8 // CACHE_LINE) * CACHE_LINE // itemsize


@helper
def list_rows(list_at, count, row_at, step, rows, size):
    """Append so many rows of so many bytes to a list of `count` addresses; returns how many it has then."""
    for row in range(rows):
        for k in range(-(-size // BYTES_ASKED)):
            store_integer(list_at + count * 8, row_at + row * step + k * BYTES_ASKED)
            count += 1
    return count


@helper
def list_samples(list_at, count, array, item, channel, channels, first, last):
    """As list_rows, of an item's samples from one up to another, as far as they exist, in so many channels."""
    if array.strides[2] != array.itemsize:
        return count
    first, last = max(first, 0), min(last, array.shape[2])
    row_at = address_of(array) + item * array.strides[0] + channel * array.strides[1] + first * array.itemsize
    return list_rows(list_at, count, row_at, array.strides[1], channels, max(last - first, 0) * array.itemsize)


@helper
def asked_by_last(list_at, count, tiles, blocks):
    """Have the last of so many tiles, of so many blocks of terms each, take a list.

    It has room for what the last one takes beyond its end, which is made to ask for the list itself.
    """
    if count == 0:
        return Asked(list_at, 0, tiles)
    for k in range(blocks):
        store_integer(list_at + (count + k) * 8, list_at)
    return Asked(list_at, blocks * 8, max(tiles - -(-count // blocks), 0))


@part
def asked_by(number, asked):
    """Where a tile's part of a list lies; 0 if it has none."""
    return asked.at + (number - asked.first) * asked.size if number >= asked.first else 0
