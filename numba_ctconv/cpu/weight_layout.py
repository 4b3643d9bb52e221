"""The layout of grad_weight's tiled product: which planes and shifts a layer has, and how its columns are cut.

Pure Python and NumPy over geometry.Plan and the shapes of a call, kept for the latest calls. Called by the engine. Only
the stretches of time decide in which order an element is summed, and they depend on the batch and the length alone.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from ..geometry import Plan
from . import asking, microkernels, moves, row_sums, target
from .layout import BLOCK, record
from .rows import share_of
from .tile_shapes import tile_shape, tile_vectors

STRETCH = 512  # terms of time that a tile sums up, at most
SLAB_BYTES = 1024 * 1024  # what the columns of a block take of the second-level cache for a stretch
SUMS_BYTES = 2 * 1024 * 1024  # that wait while time passes, asked for ahead by the tiles that add to them
STORED_BYTES = 128 * 1024  # of sums that wait for nothing but to be stored, near the first-level cache
MOST_BYTES = 6 * 1024 * 1024  # of a slab and the sums of a tile's rows
MOST_ROWS = 16  # of a tile on any machine
WIDEST_STRIP = 4  # full tiles
MANY_BLOCKS = 4  # of a worker, from which it hardly matters where the last one is cut
FEWER_VECTORS = 0.8  # part of the vectors at which samples are better packed once for each tap than for each shift
# what packing takes in time: a run of planes and each of them, and an input
RUN_COST, SAMPLE_COST, INPUT_COST = 1.5, 0.1, 0.4
TILE_COST = 0.25  # what a tile costs beside its products, in vectors


class WeightSizes(NamedTuple):
    """What the kernel is told of a call."""

    lanes: int
    rows: int  # of a tile: input channels
    block: int  # terms of a partial sum
    stretch: int  # terms of a tile
    groups: int
    waiting: int  # tiles of rows whose sums wait together while time passes
    strip: int  # output channels whose planes lie side by side in a slab
    pitch: int  # of a strip's rows
    strips: int  # of a block
    together: int  # channels whose sums of a tile of rows wait together
    slab_rows: int
    stride: int
    crop_left: int
    in_order: int  # shifts whose planes are neighbouring taps
    interleave: int  # addresses of moves, or 0
    lay_out: int
    lay_rows: int
    store: int  # as lay_out, asking for its target where each line of a cache holds some of it
    transpose: int
    add_rows: int  # addresses of the sums of rows and of their lanes
    add_lanes: int
    panel_at: int  # where these lie in a worker's scratch memory, after the slab, in elements
    tile_at: int  # sums of a tile
    start_at: int  # what a tile starts from
    bias_at: int  # sums of the lanes of a block's channels
    totals_at: int  # and of their lanes
    row_at: int  # samples of a row that is not contiguous
    list_at: int  # and a list of what tiles ask for,
    list_size: int  # of so many elements; 0 if they don't
    scratch_size: int  # of all that


WEIGHT_SIZES = record(WeightSizes)


class WeightLayout(NamedTuple):
    """The planes and shifts of a layer, and which tap stands where.

    A position's row of a slab holds its planes, and a later one those of a shift; or, with one shift alone, the samples
    of all taps, which fill vectors where channels are few.
    """

    lanes: int
    rows: int
    vectors: int
    strip: int  # output channels
    planes: Any  # (planes,), rising
    shifts: Any  # (shifts,), rising
    taps: Any  # (shifts · planes,), -1 where no tap has that shift and plane
    in_order: int  # shifts, from the first on, whose planes are neighbouring taps in order


class WeightCall(NamedTuple):
    """What a call of some shape takes: kept for as many calls as are usual at a time."""

    layout: WeightLayout
    numbers: Any  # a WeightSizes, as an array
    tiles: Any  # (2, vectors): addresses of those that store, and of those that add
    sizes: WeightSizes
    sums_size: int  # of a worker, in elements


class WeightProblem(NamedTuple):
    """What a call depends on, beside the layer's plan."""

    groups: int
    batch: int
    length: int
    row_channels: int  # of a group of the input
    channels: int  # of a group of the output
    workers: int
    crop_left: int
    itemsize: int


@functools.lru_cache(maxsize=128)
def weight_call(plan: Plan, problem: WeightProblem) -> WeightCall | None:
    """What a call takes; None where its scratch memory would be too much."""
    own = weight_layout(plan, problem)
    if own is None:
        return None
    sizes, itemsize = weight_sizes(own, plan, problem), problem.itemsize
    tiles = [microkernels.tiles(itemsize, own.lanes, own.rows, own.vectors, 1, 1, adds=adds) for adds in (False, True)]
    return WeightCall(
        own,
        np.array(sizes),
        np.stack(tiles),
        sizes,
        sizes.waiting * own.rows * len(own.shifts) * sizes.together // sizes.strip * sizes.pitch
        + target.CACHE_LINE // itemsize,
    )


def weight_layout(plan: Plan, problem: WeightProblem) -> WeightLayout | None:
    """The layout that fills its vectors better; None where neither's narrowest slab is small enough."""
    line = target.CACHE_LINE // problem.itemsize  # not the lanes: the host's vectors must not choose the algorithm
    layouts = [way(plan, problem.row_channels, problem.channels, problem.itemsize) for way in (by_shifts, by_taps)]
    fitting = [
        own
        for own in layouts
        if own is not None
        and _column_size(own, problem, MOST_ROWS) * -(-len(own.planes) // line) * target.CACHE_LINE <= MOST_BYTES
    ]
    if len(fitting) < len(layouts):
        return fitting[0] if fitting else None
    vectors = [_vectors(own, problem.channels) for own in fitting]
    return fitting[1] if vectors[1] <= FEWER_VECTORS * vectors[0] else fitting[0]


@functools.lru_cache(maxsize=64)
def by_shifts(plan: Plan, row_channels: int, channels: int, itemsize: int) -> WeightLayout | None:
    """Planes of a period of the stride, which a shift meets in a later row; None where most pairs have no tap."""
    taps = np.arange(plan.kernel_size)
    planes, plane_of_tap = np.unique(taps * plan.dilation % plan.stride, return_inverse=True)
    shifts, shift_of_tap = np.unique(taps * plan.dilation // plan.stride, return_inverse=True)
    if len(planes) * len(shifts) > 2 * plan.kernel_size + len(planes):
        return None
    where = np.full(len(shifts) * len(planes), -1)
    where[shift_of_tap * len(planes) + plane_of_tap] = taps
    return _layout(planes, shifts, where, row_channels, channels, itemsize)


@functools.lru_cache(maxsize=64)
def by_taps(plan: Plan, row_channels: int, channels: int, itemsize: int) -> WeightLayout:
    """A plane for each tap, and no shift."""
    taps = np.arange(plan.kernel_size)
    return _layout(taps * plan.dilation, np.zeros(1, np.int64), taps, row_channels, channels, itemsize)


def _layout(planes: Any, shifts: Any, where: Any, row_channels: int, channels: int, itemsize: int) -> WeightLayout:
    lanes = target.vector_bytes() // itemsize
    full = tile_vectors(tile_shape(row_channels, 1)[0])
    strip = _strip(len(planes), channels, lanes, full)
    vectors = min(-(-strip * len(planes) // lanes), full)
    rows = _rows(row_channels, vectors)
    ordered = (where == np.arange(len(where))).reshape(len(shifts), len(planes)).all(axis=1)
    return WeightLayout(
        lanes, rows, min(vectors, tile_vectors(rows)), strip, planes, shifts, where, int(np.cumprod(ordered).sum())
    )


def _strip(planes: int, channels: int, lanes: int, full: int) -> int:
    """Output channels of a strip: so few that rows are short, with hardly more vectors than many would take."""

    def cost(count: int) -> float:
        vectors = -(-count * planes // lanes)
        return vectors + TILE_COST * -(-vectors // full)

    most = max(1, min(channels, WIDEST_STRIP * full * lanes // planes))
    costs = [channels // count * cost(count) + cost(channels % count) for count in range(1, most + 1)]
    return next(count for count, found in enumerate(costs, 1) if found <= min(costs) * 1.01)


def _rows(row_channels: int, vectors: int) -> int:
    """Rows of a tile: the usual ones, or twice as many where the sums of one vector would wait for each other."""
    usual, _ = tile_shape(row_channels, 1)
    if vectors > 1 or row_channels <= usual:
        return usual
    return -(-row_channels // -(-row_channels // min(2 * usual, MOST_ROWS)))


def _vectors(own: WeightLayout, channels: int) -> int:
    """Vectors of sums for each row, all shifts together."""
    strips, rest = divmod(channels, own.strip)
    columns = [own.strip * len(own.planes)] * strips + [rest * len(own.planes)]
    return len(own.shifts) * sum(-(-count // own.lanes) for count in columns)


def _stretch(problem: WeightProblem) -> int:
    """Terms of a stretch: even ones, of whole blocks."""
    terms = problem.batch * problem.length
    stretches = -(-terms // STRETCH)
    return min(-(-terms // (stretches * BLOCK)) * BLOCK, terms)


def _slab_rows(own: WeightLayout, problem: WeightProblem) -> int:
    """Rows that a stretch spans: its terms, what follows the last, and what lies between its items."""
    stretch = _stretch(problem)
    return stretch + int(own.shifts[-1]) * (stretch // problem.length + 2)


def _column_size(own: WeightLayout, problem: WeightProblem, rows: int) -> int:
    """Elements of a column of the slab, and of the sums of so many rows."""
    return _slab_rows(own, problem) + rows * len(own.shifts)


def weight_sizes(own: WeightLayout, plan: Plan, problem: WeightProblem) -> WeightSizes:
    """The sizes of a call."""
    itemsize = problem.itemsize
    stretch, slab_rows = _stretch(problem), _slab_rows(own, problem)
    room = MOST_BYTES // itemsize // _column_size(own, problem, own.rows) // own.lanes * own.lanes
    strip = max(1, min(own.strip, room // len(own.planes)))
    pitch = -(-strip * len(own.planes) // own.lanes) * own.lanes
    strips, waiting = _shares(own, problem, strip, pitch)
    stored = strips
    if stretch == problem.batch * problem.length:  # then they are stored at once
        stored = max(1, min(strips, STORED_BYTES // itemsize // (own.rows * len(own.shifts) * pitch)))
    line = target.CACHE_LINE // itemsize
    list_size = _list_size(own, plan, problem, strips * strip, strips * slab_rows * pitch, waiting)
    places = [strips * slab_rows * pitch]  # where one thing ends and the next begins
    for size in (
        -(-stretch * own.rows // line) * line,
        own.rows * own.vectors * own.lanes,
        -(-own.rows // line) * line,
        strips * strip * own.lanes,
        strips * strip,
        target.LONGEST_STRETCH,
        list_size + line,
    ):
        places.append(places[-1] + size)
    panel_at, tile_at, start_at, bias_at, totals_at, row_at, list_at, end = places
    list_at = -(-list_at // line) * line
    return WeightSizes(
        lanes=own.lanes, rows=own.rows, block=BLOCK, stretch=stretch, groups=problem.groups,
        waiting=waiting, strip=strip, pitch=pitch, strips=strips, together=stored * strip, slab_rows=slab_rows,
        stride=plan.stride, crop_left=problem.crop_left, in_order=own.in_order,
        interleave=moves.moves.interleave(itemsize, own.lanes, own.rows),
        lay_out=moves.moves.lay_out(itemsize, len(own.planes)),
        lay_rows=moves.moves.lay_rows(itemsize, len(own.planes)),
        store=moves.moves.lay_out(itemsize, len(own.planes), asks=plan.kernel_size * itemsize <= target.CACHE_LINE),
        transpose=moves.moves.transpose(len(own.planes) * itemsize),
        add_rows=row_sums.rows(itemsize), add_lanes=row_sums.lanes(itemsize), panel_at=panel_at, tile_at=tile_at,
        start_at=start_at, bias_at=bias_at, totals_at=totals_at, row_at=row_at, list_at=list_at, list_size=list_size,
        scratch_size=end + line,
    )  # fmt: skip


def _list_size(
    own: WeightLayout, plan: Plan, problem: WeightProblem, channels: int, slab_size: int, waiting: int
) -> int:
    """Elements of a list of the samples of a stretch, which tiles ask for; 0 if they don't.

    They do where most of a stretch is of one item, and its slab and sums leave the samples room in a cache.
    """
    itemsize, stretch = problem.itemsize, _stretch(problem)
    kept = slab_size + waiting * own.rows * len(own.shifts) * len(own.planes) * channels
    only = stretch == problem.batch * problem.length
    if only or problem.length < stretch or kept * itemsize > asking.MOST_KEPT_BYTES:
        return 0
    rows = [(waiting * own.rows, stretch * itemsize), (channels, stretch * plan.stride * itemsize)]
    return asking.list_size(rows, stretch // BLOCK, itemsize)


def _shares(own: WeightLayout, problem: WeightProblem, strip: int, pitch: int) -> tuple[int, int]:
    """Strips of a block, and tiles of rows whose sums wait together."""
    groups, batch, length, row_channels, channels, workers, _, itemsize = problem
    row_tiles = -(-row_channels // own.rows)
    strips = -(-channels // strip)
    most = max(1, min(strips, SLAB_BYTES // itemsize // (_slab_rows(own, problem) * pitch)))
    sum_rows = own.rows * len(own.shifts) * pitch  # elements of a strip's sums of a tile of rows
    at_once = _stretch(problem) == batch * length  # then no sum waits for another

    def waiting(count: int) -> int:
        return 1 if at_once else max(1, SUMS_BYTES // itemsize // (sum_rows * count))

    def chunks(count: int, tiles: int) -> int:
        """Of so many tiles of rows, for each of which planes are packed again."""
        return 1 if at_once else -(-tiles // waiting(count))

    def packing(count: int) -> float:
        """What it costs the slowest worker with so many strips a block.

        Planes for all its chunks of rows, and inputs for all its blocks, of which two workers may share one.
        """
        widths = [min(count * strip, channels - first) for first in range(0, channels, count * strip)]
        planes = [width * (RUN_COST + SAMPLE_COST * len(own.planes)) for width in widths]
        if groups * len(widths) >= MANY_BLOCKS * workers:  # of which each has as many
            return sum(chunks(count, row_tiles) * own + row_channels * INPUT_COST for own in planes) * groups / workers
        vectors = [-(-width * len(own.planes) // own.lanes) for width in widths]
        work = groups * row_tiles * sum(vectors)
        costs = [0.0] * workers
        for worker in range(workers):
            before = 0
            for each, own_planes in zip(vectors * groups, planes * groups, strict=True):
                begin, end, before = share_of.py_func(row_tiles, each, before, work, worker, workers)
                if end > begin:
                    costs[worker] += chunks(count, end - begin) * own_planes + (end - begin) * own.rows * INPUT_COST
        return max(costs)

    evenest = {-(-strips // count): count for count in range(most, 0, -1)}  # for each number of blocks
    block_strips = min(evenest.values(), key=packing)
    tiles = min(row_tiles, -(-groups * -(-strips // block_strips) * row_tiles // workers))  # of a worker in a block
    return block_strips, 1 if at_once else -(-tiles // chunks(block_strips, tiles))
