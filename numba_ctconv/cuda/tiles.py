"""How the tiled kernels cut a product into tiles: pure integers, shared by the engine, the kernels and their tests.

Forward and grad_input are, for a family of phases that share their shifts, one product,

    y[o, q·step_out + phase - crop_out] = Σ_c Σ_m panel[(c, m), (o, phase)]·x[c, q·step_in + m·slope + origin],

with c over the channels that are summed and m over the taps of a phase, in the order (c, m): forward reads an earlier
sample with every tap (step_in 1, slope -dilation/phase_step) and interleaves its phases; grad_input reads a later one
(step_in stride, slope dilation) and has one phase. A block of threads owns a tile of rows (o, phase) and columns
(item, q). It sums stage after stage of terms, which wait in shared memory as words (arithmetic.py): a word is a term
or, of halves, two channels at one tap, and where "term", "channel" and c count for a stage, they count words.

A stage's samples lie there in one of two ways. *Spaced*: the samples that a channel's taps reach, once, parted into
step_in planes so that a tap is an offset; the columns of a tile belong to one item. *Dense*: a row of columns for every
word; columns of several items follow each other. Which of the two, and how many columns a tile has, may follow from
batch and length, since neither changes what an element sums, nor in which order.

Where tiles are too few to fill a chip, their stages are *split* over several thread blocks, at the ends of partial sums
(tile.BLOCK_STAGES): each of these waits in memory, and parts.py adds those of an element in the order in which a thread
block of all stages adds them. So whether and where a call is split may follow from batch and length as well.
"""

import functools
import math
from typing import Any, NamedTuple

from ..geometry import Family, Plan
from .arithmetic import Arithmetic
from .tile import BANKS, BLOCK_STAGES, WORDS, Tile, splits, tiles_of, weight_tiles_of

MULTIPROCESSORS = 128  # of a large chip
ENOUGH_BLOCKS = 2 * MULTIPROCESSORS  # below that, narrower tiles use more of it
# The next two are estimates, which no GPU has timed: a stage takes half a microsecond, a launch two or three.
PART_STAGES = 8  # of a split product, at least: fewer take no longer than the launch that adds the parts
SPLIT_SUMS = 2**16  # of a split product, at most: the partial sums of more take as long to move as is won
PART_TERMS = 2048  # samples of grad_weight that are summed in one go if memory allows
WORKSPACE_BYTES = 48 * 2**20  # for parts of grad_weight, or of a split product
SLACK = 8  # part of the columns that spaced tiles may waste


class Layer(NamedTuple):
    """One family's product, as the layer and the arithmetic alone decide it."""

    arithmetic: Arithmetic
    tile_rows: int
    groups: int
    term_channels: int
    taps: int
    channels: int  # of the target, in a group
    phases: int
    stages: int
    stage_words: int
    step_in: int
    step_out: int
    slope: int

    @property
    def panel_words(self) -> int:
        """Words of a row in a packed stage: whole instructions of them, the last ones zeros."""
        return -(-self.stage_words // self.arithmetic.step) * self.arithmetic.step

    @property
    def row_tiles(self) -> int:
        """Of a group."""
        return -(-self.channels * self.phases // self.tile_rows)

    @property
    def panel(self) -> int:
        """Elements of a stage of a tile of rows."""
        return self.panel_words * self.tile_rows

    @property
    def packed(self) -> int:
        """Elements of the packed weight: panels, and after them whether each holds Inf or NaN."""
        return self.groups * self.row_tiles * self.stages * (self.panel + 1)


class Sizes(NamedTuple):
    """What the product kernel is told of a layer and a call."""

    groups: int
    row_tiles: int
    rows: int
    phases: int
    term_channels: int
    taps: int
    stages: int
    part_stages: int  # of a thread block; all of them where the product is not split
    stage_words: int
    panel_words: int
    stage_rows: int
    spaced: int
    step_in: int
    slope: int
    origin: int
    step_out: int
    crop_out: int
    q_first: int
    positions: int
    width: int  # samples of a slab's row
    pitch: int  # of its planes
    row_lanes: int  # threads that fill a row together


class WeightSizes(NamedTuple):
    """What the kernel of grad_weight is told."""

    groups: int
    row_tiles: int
    column_tiles: int
    stages: int
    part_stages: int
    stride: int
    dilation: int
    crop_left: int


@functools.lru_cache(maxsize=256)
def forward_layer(
    plan: Plan, family: Family, weight_shape: tuple[int, int, int], groups: int, arithmetic: Arithmetic
) -> Layer:
    """The product of a family of phases of the forward pass that has taps."""
    slope = -(plan.dilation // plan.phase_step)
    channels = (weight_shape[0] // groups, weight_shape[1])
    return _layer(*channels, groups, family.taps, len(family.phases), 1, plan.stride, slope, arithmetic)


@functools.lru_cache(maxsize=256)
def grad_input_layer(plan: Plan, weight_shape: tuple[int, int, int], groups: int, arithmetic: Arithmetic) -> Layer:
    """The product of the input gradient."""
    channels = (weight_shape[1], weight_shape[0] // groups)
    return _layer(*channels, groups, plan.kernel_size, 1, plan.stride, 1, plan.dilation, arithmetic)


def _layer(
    term_channels: int, channels: int, groups: int, taps: int, phases: int, step_in: int, step_out: int, slope: int,
    arithmetic: Arithmetic,
) -> Layer:  # fmt: skip
    # whole channels, so that a spaced stage needs no others; more taps than a stage has words are cut anywhere
    stage_words = WORDS // taps * taps or WORDS
    channel_words = -(-term_channels // arithmetic.terms)
    stages = -(-channel_words * taps // stage_words)
    tile_rows = min(tiles_of(arithmetic), key=lambda rows: _padded(channels * phases, rows))
    return Layer(
        arithmetic, tile_rows, groups, term_channels, taps, channels, phases, stages, stage_words, step_in, step_out,
        slope,
    )  # fmt: skip


def _padded(rows: int, tile_rows: int) -> tuple[int, int]:
    """How many rows tiles of so many compute, in steps that outweigh what larger tiles save; larger ones first."""
    padded = -(-rows // tile_rows) * tile_rows
    return (padded > rows + rows // 2, -tile_rows) if tile_rows > 16 else (False, 0)


def sizes_of(layer: Layer, tile: Tile, batch: int, origin: int, crop_out: int, q_first: int, positions: int) -> Sizes:
    """What the kernel is told: spaced where that fits and wastes few columns."""
    reach = (layer.taps - 1) * abs(layer.slope)
    width = (tile.columns - 1) * layer.step_in + reach + 1
    pitch = (fragment_pitch if tile.tensor else pitch_of)(-(-width // layer.step_in), layer.step_in, layer.taps)
    rows = layer.stage_words // layer.taps  # channels of a stage; none where it is a part of one
    spaced = rows > 0 and rows * layer.step_in * pitch <= tile.slab_room
    by_item, together = batch * -(-positions // tile.columns), -(-batch * positions // tile.columns)
    if not spaced or by_item * SLACK > together * (SLACK + 1):
        spaced, rows, width, pitch = False, layer.stage_words, tile.columns, tile.pitch
    lanes = 32
    while lanes < tile.threads and rows * lanes < tile.threads and width > lanes:
        lanes *= 2
    part_stages = _part_stages(layer, tile, by_item if spaced else together, batch * positions)
    return Sizes(
        layer.groups, layer.row_tiles, layer.channels * layer.phases, layer.phases, layer.term_channels, layer.taps,
        layer.stages, part_stages, layer.stage_words, layer.panel_words, rows, int(spaced), layer.step_in, layer.slope,
        origin, layer.step_out, crop_out, q_first, positions, width, pitch, lanes,
    )  # fmt: skip


def _part_stages(layer: Layer, tile: Tile, column_tiles: int, columns: int) -> int:
    """How many stages a thread block sums: all, or as few as it takes for all blocks to be at work at once.

    Few tiles leave most of a chip idle, and each waits for its own long stretch of weights.
    """
    sums = layer.groups * layer.channels * layer.phases * columns
    blocks = -(-layer.stages // BLOCK_STAGES)
    parts = min(
        MULTIPROCESSORS * tile.resident // (layer.groups * layer.row_tiles * column_tiles), layer.stages // PART_STAGES
    )
    too_many = sums > SPLIT_SUMS or blocks * sums * layer.arithmetic.word_bytes > WORKSPACE_BYTES
    if parts < 2 or too_many or not splits(tile, layer.arithmetic):
        return max(1, layer.stages)
    return -(-blocks // parts) * BLOCK_STAGES


def pitch_of(width: int, planes: int, taps: int) -> int:  # noqa: ARG001  # as fragment_pitch
    """Elements from plane to plane: neighbouring samples go to neighbouring planes, and should go to other banks."""
    if planes == 1:
        return width
    apart = max(1, BANKS // planes)
    return width + (apart - width) % BANKS


def fragment_pitch(width: int, planes: int, taps: int) -> int:
    """The same for lanes of a fragment, which read eight columns of four neighbouring terms at once."""
    apart = 8 if taps == 1 or planes > 2 else 16  # four rows of planes in which the terms lie, or two
    return width + (apart - width) % BANKS


def column_tiles(sizes: Sizes, tile: Tile, batch: int) -> int:
    """Tiles that cover the columns of all items."""
    if sizes.spaced:
        return batch * math.ceil(sizes.positions / tile.columns)
    return math.ceil(batch * sizes.positions / tile.columns)


def blocks_of(sizes: Sizes, tile: Tile, batch: int) -> int:
    """Blocks of a launch."""
    return sizes.groups * sizes.row_tiles * parts_of(sizes) * column_tiles(sizes, tile, batch)


def parts_shape(sizes: Sizes, batch: int) -> tuple[int, int, int, int]:
    """(partial sums of an element, rows of all groups, N, positions) of what waits in memory; empty if nothing does."""
    if parts_of(sizes) == 1:
        return (0, 0, 0, 0)
    return (-(-sizes.stages // BLOCK_STAGES), sizes.groups * sizes.rows, batch, sizes.positions)


def tile_for(layer: Layer, batch: int, positions: int) -> Tile:
    """The widest tile of which there are enough to fill a chip, else the narrowest."""
    tiles = tiles_of(layer.arithmetic)[layer.tile_rows]
    for tile in tiles:
        if layer.groups * layer.row_tiles * (batch * positions // tile.columns) >= ENOUGH_BLOCKS:
            return tile
    return tiles[-1]


def weight_tile(shape: tuple[int, int, int], groups: int, arithmetic: Arithmetic) -> Tile:
    """The tile of grad_weight (C_in, C_out/groups, K)."""
    columns = shape[1] * shape[2]
    tiles = weight_tiles_of(arithmetic)
    enough = [rows for rows in tiles if columns > 32 or tiles[rows][-1].columns == 32]
    own = tiles[min(enough, key=lambda rows: _padded(shape[0] // groups, rows))]
    return own[0 if columns > own[-1].columns else -1]


def weight_sizes(
    plan: Plan, tile: Tile, shape: tuple[int, int, int], groups: int, batch: int, input_length: int, crop_left: int,
    arithmetic: Arithmetic,
) -> WeightSizes:  # fmt: skip
    """How grad_weight is cut: into enough parts to fill a chip, and short ones for accuracy, as memory allows."""
    row_tiles = -(-shape[0] // groups // tile.rows)
    column_tiles = -(-shape[1] * shape[2] // tile.columns)
    stages = -(-batch * input_length // (WORDS * arithmetic.terms))
    part_most = PART_TERMS // (WORDS * arithmetic.terms)
    wanted = max(-(-ENOUGH_BLOCKS // (groups * row_tiles * column_tiles)), -(-stages // part_most))
    most = min(WORKSPACE_BYTES // (math.prod(shape) * arithmetic.word_bytes), -(-stages // BLOCK_STAGES))
    part_stages = -(-stages // max(1, min(wanted, most)))
    part_stages = max(1, -(-part_stages // BLOCK_STAGES)) * BLOCK_STAGES
    return WeightSizes(groups, row_tiles, column_tiles, stages, part_stages, plan.stride, plan.dilation, crop_left)


def parts_place(sizes: Sizes) -> tuple[int, int, int]:
    """(own_phases, step_out, shift) of a split product, as parts.add_parts is told."""
    return sizes.phases, sizes.step_out, sizes.q_first * sizes.step_out - sizes.crop_out


def parts_of(sizes: Sizes | WeightSizes) -> int:
    """Parts that the terms are cut into; one where there are none."""
    return max(1, -(-sizes.stages // sizes.part_stages))


# --- what a kernel asks -----------------------------------------------------------------------------------------------
# Plain functions that the kernels compile; `j` and `t` differ from thread to thread.


def block_at(sizes: Sizes, block: Any) -> tuple[Any, Any, Any]:
    """(tile of rows, of all groups; part; tile of columns) of a thread block."""
    row_tiles = sizes.groups * sizes.row_tiles
    parts = max(1, -(-sizes.stages // sizes.part_stages))
    rest = block // row_tiles
    return block % row_tiles, rest % parts, rest // parts


def column_at(sizes: Sizes, columns: int, batch: int, column_tile: int, j: Any) -> tuple[Any, Any]:
    """(item, position) of column j of a tile; the item is -1 where there is none."""
    if sizes.spaced:
        item_tiles = -(-sizes.positions // columns)
        item = column_tile // item_tiles
        position = column_tile % item_tiles * columns + j
        there = position < sizes.positions
    else:
        column = column_tile * columns + j
        item = column // sizes.positions
        position = column - item * sizes.positions
        there = item < batch
    return item * there - (1 - there), position


def term_offset(sizes: Sizes, t: Any) -> Any:
    """Where in a stage's samples column 0 of term t lies."""
    if sizes.spaced:
        low = min(0, (sizes.taps - 1) * sizes.slope)
        channel = t // sizes.taps
        sample = (t - channel * sizes.taps) * sizes.slope - low
        return (channel * sizes.step_in + sample % sizes.step_in) * sizes.pitch + sample // sizes.step_in
    return t * sizes.pitch


def stage_meets_edge(
    sizes: WeightSizes, stage: int, stage_terms: int, batch: int, length: int, out_length: int, kernel_size: int
) -> bool:
    """Whether a tap meets no sample of grad_output in a stage of grad_weight."""
    begin = stage * stage_terms
    end = min(begin + stage_terms, batch * length) - 1
    first, last = begin % length, end % length
    if begin // length != end // length:
        first, last = 0, length - 1
    low = first * sizes.stride - sizes.crop_left
    high = last * sizes.stride + (kernel_size - 1) * sizes.dilation - sizes.crop_left
    return low < 0 or high >= out_length
