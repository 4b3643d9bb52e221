"""How the tiled product cuts a call's columns: into blocks that workers share out, of strips that tiles meet.

Pure Python over a layout and the shapes of a call, kept for the latest calls. Called by the engine. Nothing that is
decided here changes what an element sums, or in which order.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from ..geometry import Geometry
from . import microkernels, target
from .layout import BLOCK, MOST_IN_PLACE, SLAB_BYTES, Layout, Sizes

MOST_TOGETHER = 16  # tiles that are packed at once, which may lie side by side in the weight
PANELS_BYTES = 512 * 1024  # that are made right before they are used, in the second-level cache
BLOCK_CHANNELS = 16  # rows of a weight that are read side by side, which prefetchers follow
MOST_BLOCKS_REMADE = 2  # of columns, for each of which panels are made again
IN_PLACE_BYTES = 64 * 1024  # what a block that is read in place takes of the second-level cache
LEAST_COPIED = 4  # times that many rows are read again and again, each on a page of its own
LEAST_ROW = 3  # tiles of a row, below which each may as well sum up all terms
CACHE_PERIOD = 128 * 1024  # bytes after which addresses share a set of the second-level cache, of so many ways
CACHE_WAYS = 8


class Call(NamedTuple):
    """What a call of some shape takes beside a layout: kept for as many calls as are usual at a time."""

    numbers: Any  # a Sizes, as an array
    scratch_size: int  # in elements
    makes_panels: bool  # as they are used


class Problem(NamedTuple):
    """What the sizes of a call depend on, beside its layout."""

    groups: int
    shape: tuple[int, ...]  # of the source
    strides: tuple[int, ...]  # likewise, in bytes
    row_channels: int  # of a group of the output
    itemsize: int
    workers: int
    long: bool  # worth letting other Python threads run
    crop_in: int
    crop_out: int
    q_first: int
    positions: int  # of an item


@functools.lru_cache(maxsize=128)
def forward_calls(
    layouts: tuple[Layout, ...],
    geometry: Geometry,
    groups: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    out_channels: int,
    itemsize: int,
    workers: int,
    long: bool,
    packed: bool,
) -> tuple[Call, ...]:
    """What a forward pass takes, a family of phases each, whose panels are there if they are `packed`."""
    step, crop = geometry.plan.stride, geometry.crops.left
    first = crop // step
    positions = (crop + geometry.output_length - 1) // step - first + 1
    problem = Problem(
        groups, shape, strides, out_channels // groups, itemsize, workers, long, 0, crop, first, positions
    )
    return tuple(call_of(own, problem, packed=packed) for own in layouts)


@functools.lru_cache(maxsize=128)
def grad_input_calls(
    layouts: tuple[Layout, ...],
    geometry: Geometry,
    groups: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    in_channels: int,
    itemsize: int,
    workers: int,
    long: bool,
    packed: bool,
) -> tuple[Call, ...]:
    """As above, of the gradient of the input."""
    crop, length = geometry.crops.left, geometry.input_length
    problem = Problem(groups, shape, strides, in_channels // groups, itemsize, workers, long, crop, 0, 0, length)
    return tuple(call_of(own, problem, packed=packed) for own in layouts)


def call_of(own: Layout, problem: Problem, *, packed: bool) -> Call:
    """What a call takes, whose panels are there if they are `packed`."""
    sizes = sizes_of(own, problem, packed=packed)
    tile_size = own.rows * own.vectors * own.lanes
    tall_size = own.rows * sizes.tall_tiles * own.lanes
    tiles_size = sizes.few_tiles * sizes.start_size
    staged = max(max(tile_size, tall_size) // own.tile_phases * own.slots, tiles_size * microkernels.COLUMNS[-1])
    sums_size = max(tile_size, tall_size, sizes.row_sums)
    starts = max(tiles_size, own.rows * sizes.tall_tiles)
    lines = 2 * target.CACHE_LINE // problem.itemsize  # to begin at one, and the addresses of panels
    strips = -(-sizes.width // sizes.strip)
    slab_size = strips * own.slab_rows * sizes.pitch + sizes.few_columns
    together, terms = max(own.few_tiles, own.tall_tiles), sizes.block_channels * own.taps
    totals_size, made_tiles = 0, sizes.together
    if sizes.block_channels > 0:
        units = -(-own.row_tiles(problem.row_channels) // together)
        totals_size = -(-units // sizes.parts) * together * own.most_sums
        made_tiles = together
    made_size = made_tiles * (terms or len(own.term_rows)) * own.rows
    made_size += own.beyond + target.CACHE_LINE // problem.itemsize if made_size > 0 else 0
    own_size = slab_size + totals_size + lines + sums_size + staged + starts
    sizes = sizes._replace(
        slab_size=slab_size, totals_size=totals_size, made_size=made_size, sums_size=sums_size, starts=starts,
        own_size=own_size,
    )  # fmt: skip
    offsets_size = 2 * len(own.term_rows) * 8 // problem.itemsize
    scratch_size = offsets_size + problem.workers * (own_size + 1 + made_size)
    return Call(np.array(sizes), scratch_size, made_size > 0)


def sizes_of(layout: Layout, problem: Problem, *, packed: bool) -> Sizes:
    """What the kernel unpacks, for one call: the columns cut into even blocks, the rows into parts for the workers.

    But for the sizes of its scratch memory, which follow from these.
    """
    groups, (batch, _, length), strides, row_channels, itemsize, workers, long, *steps = problem
    crop_in, _, q_first, positions = steps
    full = layout.vectors * layout.lanes
    row_tiles = layout.row_tiles(row_channels)
    in_place = reads_in_place(layout, row_channels, strides, itemsize)
    item_columns = columns_between_items(layout, length, crop_in, q_first, positions)
    columns = (batch - 1) * item_columns + positions
    widest = layout.width
    row_sums = 0
    room = target.SUMS_BYTES // itemsize // layout.rows  # for the sums of a row of tiles
    if row_tiles > 1:  # each of which reads the block again
        room = min(room, SLAB_BYTES // itemsize // layout.slab_rows)
    many = in_place and layout.many_streams(row_channels)
    if many and min(room, columns) >= LEAST_ROW * full:
        widest = min(widest, room // full * full)
        row_sums = widest * layout.rows
    elif many and row_tiles >= LEAST_COPIED:
        in_place = False
    elif in_place:
        widest = min(widest, full * max(1, IN_PLACE_BYTES // itemsize // layout.slab_rows // full))
    blocks = max(1, -(-columns // widest))
    width = min(widest, -(-columns // blocks // full) * full)
    blocks = -(-columns // width)
    tiles = -(-min(width, columns) // full)  # of a block; its vectors are shared out among them
    even = -(-min(width, columns) // (layout.lanes * tiles)) * layout.lanes
    strip = min(even if layout.strip == full else layout.strip, width)
    pitch = layout.lead + strip + layout.tail
    if columns <= layout.few_columns:  # rows so short that many share a cache line
        pitch = layout.lead + min(count for count in microkernels.COLUMNS if count >= columns) + layout.tail
    units = row_tiles
    short = columns <= min(strip, layout.lanes + min(layout.few_columns, layout.lanes - 1))  # one vector and a few
    if short:  # which several tiles are computed of at once
        units = -(-row_tiles // max(layout.few_tiles, layout.tall_tiles))
    parts = 1 if workers == 1 else max(1, min(units, -(-4 * workers // (groups * blocks))))
    together, block_channels = 0, 0
    if not packed and short and layout.takes_blocks:
        block_channels = BLOCK_CHANNELS if BLOCK_CHANNELS * layout.taps % BLOCK == 0 else 2 * BLOCK_CHANNELS
        if row_tiles * layout.most_sums * itemsize > PANELS_BYTES:
            block_channels = 0
    if not packed and block_channels == 0 and blocks <= MOST_BLOCKS_REMADE:
        together = tiles_together(layout, itemsize)
    return Sizes._make(
        (*layout.fixed, groups, row_channels, parts, strip, pitch, width, *steps, item_columns, int(in_place), row_sums,
         together, block_channels, 0, 0, 0, 0, 0, 0, int(long))
    )  # fmt: skip


def tiles_together(layout: Layout, itemsize: int) -> int:
    """Tiles whose panels are made and used while they are in a cache; 0 where not even two fit."""
    panel_bytes = max(1, len(layout.term_rows) * layout.rows * itemsize)
    return min(PANELS_BYTES // panel_bytes // 2 * 2, MOST_TOGETHER)


def columns_between_items(layout: Layout, length: int, crop_in: int, q_first: int, positions: int) -> int:
    """From an item's first position to the next one's: far enough for neither to meet the other's samples.

    What an item's shifts reach after its last sample and what the next one's reach before its first is zero, so the
    columns that stand for the one stand for the other as well.
    """
    begin, end = q_first - layout.lead, q_first + positions + layout.tail  # the columns that an item's shifts reach
    planes = layout.planes
    first = max(begin, -((int(planes[-1]) - crop_in) // layout.step_in))  # of which some plane holds a sample
    last = min(end, -((int(planes[0]) - crop_in - length) // layout.step_in))
    zeros = max(0, min(first - begin, end - last))
    return max(end - begin - zeros, positions)


def reads_in_place(layout: Layout, row_channels: int, strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether the rows of a source with such strides serve as they are.

    They have to be contiguous, met too seldom to be worth copying, and at no distance at which they take each other's
    place in the second-level cache.
    """
    _, pitch, step = strides
    if layout.step_in != 1 or not layout.every_plane or step != itemsize or pitch % step != 0 or pitch <= 0:
        return False
    if layout.row_tiles(row_channels) * layout.taps > MOST_IN_PLACE:
        return False
    return layout.slab_rows * math.gcd(pitch, CACHE_PERIOD) <= CACHE_WAYS * CACHE_PERIOD
