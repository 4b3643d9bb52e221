"""How the tiled product cuts a call's columns: into blocks that workers share out, of strips that tiles meet.

Pure Python over a layout and the shapes of a call, kept for the latest calls. Called by the engine. Nothing that is
decided here changes what an element sums, or in which order.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from ..geometry import Geometry
from . import asking, column_tiles, target, tiled, unpacked_tiles
from .layout import BLOCK, SLAB_BYTES, Layout, Sizes
from .panels import MOST_TOGETHER, Families, Family
from .tile_sums import few_of, few_stored

PANELS_BYTES = 2 * 1024 * 1024  # made right before they are used: of many tiles, so that rows of weights are read on
TOTALS_BYTES = 512 * 1024  # of sums that wait while panels of other channels are made;
UNPACKED_BYTES = 2 * 1024 * 1024  # and of those of which few will be, where weights are read as they are
BLOCK_CHANNELS = 16  # rows of a weight that are read side by side, which prefetchers follow,
MADE_GROUPS = 8  # and groups of tiles whose panels are made of them at once, for the same reason
MOST_BLOCKS_REMADE = 2  # of columns, for each of which panels are made again
IN_PLACE_BYTES = 64 * 1024  # what a block that is read in place takes of the second-level cache
LEAST_COPIED_BYTES = 8 * 1024  # of a block, below which it is copied sooner than cut in three
LEAST_COPIED = 4  # times that many rows are read again and again, each on a page of its own
LEAST_ROW = 3  # tiles of a row, below which each may as well sum up all terms
FAR = 2  # times what a tile meets of an item, from which the terms that meet nothing are looked for
NARROW = 2  # times a full tile's columns, up to which an item meets fewer terms in vain in a vector than in all of them
BLOCK_COST = 6  # columns that are multiplied out in the time that a block's panels take to come
COPY_COST = 12  # rows of the product that a sample meets in the time in which it is copied for another tap
CACHE_PERIOD = 128 * 1024  # bytes after which addresses share a set of the second-level cache, of so many ways
CACHE_WAYS = 8


class Call(NamedTuple):
    """What a call of some shape takes for a family of phases: kept for as many calls as are usual at a time."""

    panel_numbers: Any  # a PanelSizes and its lists, as an array
    numbers: Any  # a Sizes, as an array
    shared_size: int  # of scratch memory, in elements
    worker_size: int  # and of each worker's
    makes_panels: bool  # as they are used
    long: bool  # enough to share out, and to let other Python threads run


class Problem(NamedTuple):
    """What the sizes of a call depend on, beside its layout."""

    groups: int
    shape: tuple[int, ...]  # of the source
    strides: tuple[int, ...]  # likewise, in bytes
    long: bool  # a Call's
    packed: bool  # whether the panels are there
    crop_in: int
    crop_out: int
    q_first: int
    positions: int  # of an item


@functools.lru_cache(maxsize=128)
def forward_calls(
    families: Families, geometry: Geometry, groups: int, shape: tuple[int, ...], strides: tuple[int, ...], packed: bool
) -> tuple[Call, ...]:
    """What a forward pass takes, for each family of phases; its panels are there if they are `packed`."""
    crop, long = geometry.crops.left, is_long(families, geometry, shape)
    calls = []
    for own in families:
        first, positions = geometry.positions(own.layout.phases)  # none where the output is too short for the phases
        problem = Problem(groups, shape, strides, long, packed, 0, crop, first, max(positions, 1))
        calls.append(call_of(own, problem))
    return tuple(calls)


@functools.lru_cache(maxsize=128)
def grad_input_calls(
    families: Families, geometry: Geometry, groups: int, shape: tuple[int, ...], strides: tuple[int, ...], packed: bool
) -> tuple[Call, ...]:
    """As above, of the gradient of the input."""
    crop, length, long = geometry.crops.left, geometry.input_length, is_long(families, geometry, shape)
    problem = Problem(groups, shape, strides, long, packed, crop, 0, 0, length)
    return tuple(call_of(own, problem) for own in families)


def is_long(families: Families, geometry: Geometry, shape: tuple[int, ...]) -> bool:
    """Whether the product of all families with a source of this shape is worth sharing out."""
    weights = shape[1] * families[0].layout.row_channels * geometry.plan.kernel_size
    return shape[0] * weights * geometry.input_length > target.FEW_PRODUCTS


def call_of(family: Family, problem: Problem) -> Call:
    """What a call takes for a family of phases."""
    family = apart_or_not(family, problem)
    own = family.layout
    sizes = sizes_of(own, problem)
    tile_size = own.rows * own.vectors * own.lanes
    tall_size = own.rows * sizes.tall_tiles * own.lanes
    tiles_size = sizes.few_tiles * sizes.start_size
    staged = max(max(tile_size, tall_size) // own.tile_phases * own.slots, tiles_size * column_tiles.COLUMNS[-1])
    sums_size = max(tile_size, tall_size, sizes.row_sums)
    starts = max(tiles_size, own.rows * sizes.tall_tiles)
    line = target.CACHE_LINE // own.itemsize
    strips = -(-sizes.width // sizes.strip)
    slab_size = strips * own.slab_rows * sizes.pitch + sizes.few_columns
    totals_size = 0
    if sizes.block_channels > 0:
        totals_size = -(-own.row_tiles // sizes.together) * sizes.together * own.most_sums
    made_size = sizes.together * (sizes.block_channels * own.taps or len(own.term_rows)) * own.rows
    made_size += own.beyond + line if made_size > 0 else 0
    list_size = list_size_of(own, sizes, slab_size)
    # a line to begin at one, and one where panels lie
    own_size = slab_size + totals_size + 2 * line + list_size + sums_size + staged + starts
    dtype = np.dtype(f"f{own.itemsize}")
    task, sum_blocks, unpacked, unpacked_columns = tiled.share.address(dtype), 0, 0, 0
    if own.takes_blocks and not problem.packed:  # the first call compiles what any length can need
        by_blocks, sum_blocks = (part.address(dtype) for part in (tiled.share_by_blocks, tiled.sum_blocks))
        task = by_blocks if sizes.block_channels > 0 else task
        unpacked, unpacked_columns = unpacked_of(own)
    sizes = sizes._replace(
        slab_size=slab_size, totals_size=totals_size, made_size=made_size, list_size=list_size, sums_size=sums_size,
        starts=starts, own_size=own_size, task=task, sum_blocks=sum_blocks, unpacked=unpacked,
        unpacked_columns=unpacked_columns,
    )  # fmt: skip
    shared_size = 2 * len(own.term_rows) * 8 // own.itemsize
    worker_size = own_size + 1 + made_size
    return Call(family.numbers, np.array(sizes), shared_size, worker_size, made_size > 0, problem.long)


def list_size_of(own: Layout, sizes: Sizes, slab_size: int) -> int:
    """Elements of a list of the samples of a block, which tiles ask for; 0 if they don't."""
    if sizes.in_place or slab_size * own.itemsize > asking.MOST_KEPT_BYTES:
        return 0
    rows = own.slab_rows // len(own.planes), sizes.width * own.step_in * own.itemsize
    return asking.list_size([rows], -(-len(own.term_rows) // BLOCK), own.itemsize)


def unpacked_of(own: Layout) -> tuple[int, int]:
    """The address of the tiles whose weights are read where they are, and up to how many columns; 0 where none are."""
    columns = unpacked_columns(own)
    if columns == 0:
        return 0, 0
    return unpacked_tiles.unpacked_tiles(own.itemsize, own.lanes, own.rows, own.tile_phases, own.taps, BLOCK), columns


def unpacked_columns(own: Layout) -> int:
    """Up to how many columns there are such tiles, whose blocks of terms are whole channels."""
    if not own.side_by_side or BLOCK % own.taps != 0:
        return 0
    return unpacked_tiles.most_columns(own.lanes, own.rows, own.taps)


def apart_or_not(family: Family, problem: Problem) -> Family:
    """The family with a row for each tap where what lies between items costs more than to copy samples again."""
    own = family.layout
    if problem.shape[0] == 1 or family.apart is None or own.reaches_far:
        return family

    def cost(layout: Layout) -> float:
        """In columns of the product; panels come from farther for each block anew."""
        _, columns = columns_of(layout, problem)
        return -(-columns // layout.lanes) * layout.lanes + -(-columns // layout.width) * BLOCK_COST

    copying = 1 + COPY_COST / (own.row_channels * len(own.phases))
    return family.apart if cost(family.apart.layout) * copying < cost(own) else family


def columns_of(layout: Layout, problem: Problem) -> tuple[int, int]:
    """From an item's first column to the next one's, and all that a call has."""
    (batch, _, length), positions = problem.shape, problem.positions
    between = columns_between_items(layout, length, problem.crop_in, problem.q_first, positions)
    return between, (batch - 1) * between + positions


def sizes_of(layout: Layout, problem: Problem) -> Sizes:
    """What the kernel unpacks, for one call: the columns cut into even blocks.

    But for what follows from these, which `call_of` finds.
    """
    groups, (batch, _, length), strides, long, packed, *steps = problem
    itemsize = layout.itemsize
    full = layout.vectors * layout.lanes
    row_tiles = layout.row_tiles
    in_place = reads_in_place(layout, strides)
    item_columns, columns = columns_of(layout, problem)
    widest = layout.width
    row_sums = 0
    room = target.SUMS_BYTES // itemsize // layout.rows  # for the sums of a row of tiles
    if row_tiles > 1:  # each of which reads the block again
        room = min(room, SLAB_BYTES // itemsize // layout.slab_rows)
    many = in_place and layout.many_streams
    if many and min(room, columns) >= LEAST_ROW * full:
        widest = min(widest, room // full * full)
        row_sums = widest * layout.rows
    elif many and row_tiles >= LEAST_COPIED:
        in_place = False
    elif in_place:
        row_sums = int(layout.few_terms)  # none wait, and tiles of a row are called together
        widest = min(widest, full * max(1, IN_PLACE_BYTES // itemsize // layout.slab_rows // full))
    inner_begin = inner_end = 0
    if in_place:
        inner_begin, inner_end = inner_columns(layout, problem.positions, widest)
    spans, span = (batch, inner_end - inner_begin) if inner_end > 0 else (1, columns)
    blocks = max(1, -(-span // widest))
    width = min(widest, -(-span // blocks // full) * full)
    width = max(width, problem.positions - inner_end) if inner_end > 0 else width
    blocks = spans * -(-span // width)
    tiles = -(-min(width, columns) // full)  # of a block; its vectors are shared out among them
    even = -(-min(width, columns) // (layout.lanes * tiles)) * layout.lanes
    strip = min(even if layout.strip == full else layout.strip, width)
    pitch = layout.lead + strip + layout.tail
    if few_of.py_func(columns, layout) == columns:  # rows so short that many share a cache line
        pitch = layout.lead + few_stored.py_func(columns) + layout.tail
    short = columns <= min(strip, layout.lanes + min(layout.few_columns, layout.lanes - 1))  # one vector and a few
    together, block_channels = (0, 0) if packed else made_at_once(layout, blocks, short, columns)
    far_columns = 0
    if layout.reaches_far and row_sums == 0 and layout.lead + layout.tail > FAR * (length + full):
        far_columns = full if length > NARROW * full else layout.lanes
        row_sums = far_columns * layout.rows
    found = (
        *layout.fixed, layout.group_tiles, groups, layout.row_channels, strip, pitch, width, inner_begin, inner_end,
        *steps, length, item_columns, int(in_place), row_sums, int(are_paired(layout, problem, columns)), far_columns,
        together, block_channels, int(long),
    )  # fmt: skip
    return Sizes(*found)


def are_paired(layout: Layout, problem: Problem, columns: int) -> bool:
    """Whether all columns are few, and meet one item from end to end by two taps: see column_tiles.columns_met."""
    if layout.taps != 2 or problem.shape[0] > 1 or columns not in column_tiles.PAIRED_COLUMNS:
        return False
    first, second = (problem.q_first - problem.crop_in + int(start) - layout.lead for start in layout.term_starts[:2])
    ends_before_last = first + columns - 1 >= problem.shape[2]
    return layout.step_in == 1 and columns <= layout.few_columns and second < 0 and ends_before_last


def inner_columns(layout: Layout, positions: int, widest: int) -> tuple[int, int]:
    """Where the columns of an item begin and end of which tiles load nothing beyond its samples; 0, 0 where few do.

    Blocks of these can be read in place, and what lies at the ends is so little that it is soon copied.
    """
    full = layout.vectors * layout.lanes
    begin = full * -(-(layout.lead + layout.tail + layout.lanes + layout.few_columns) // full)
    end = begin + (positions - 2 * begin) // full * full
    copied = layout.slab_rows * min(positions, widest) * layout.itemsize
    worth_it = end - begin >= full and copied >= LEAST_COPIED_BYTES
    return (begin, end) if worth_it and positions - end <= widest else (0, 0)


def made_at_once(layout: Layout, blocks: int, short: bool, columns: int) -> tuple[int, int]:
    """Tiles whose panels are made and used while they are in a cache, and of how many channels.

    Of no tiles where all panels are better made first, and of 0 channels where they are whole. `short` are so few
    columns that all tiles' sums of them may wait while a few channels' panels are made.
    """
    room = UNPACKED_BYTES if columns <= unpacked_columns(layout) else TOTALS_BYTES
    if short and layout.takes_blocks and layout.row_tiles * layout.most_sums * layout.itemsize <= room:
        whole_blocks = BLOCK_CHANNELS * layout.taps % BLOCK == 0
        channels = BLOCK_CHANNELS if whole_blocks else 2 * BLOCK_CHANNELS
        return min(-(-layout.row_tiles // layout.group_tiles), MADE_GROUPS) * layout.group_tiles, channels
    if blocks > MOST_BLOCKS_REMADE:
        return 0, 0
    panel_bytes = max(1, len(layout.term_rows) * layout.rows * layout.itemsize)
    return min(PANELS_BYTES // panel_bytes // 2 * 2, MOST_TOGETHER), 0


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


def reads_in_place(layout: Layout, strides: tuple[int, ...]) -> bool:
    """Whether the rows of a source with such strides serve as they are.

    They have to be contiguous, met too seldom to be worth copying, and at no distance at which they take each other's
    place in the second-level cache.
    """
    _, pitch, step = strides
    if not layout.serves_as_it_is or step != layout.itemsize or pitch % step != 0 or pitch <= 0:
        return False
    return layout.slab_rows * math.gcd(pitch, CACHE_PERIOD) <= CACHE_WAYS * CACHE_PERIOD
