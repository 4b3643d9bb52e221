"""The layout of the tiled product: which terms, planes and tiles a layer has.

Pure Python and NumPy over geometry.Plan, cached by layer: nothing here depends on a length or a batch. Called by the
engine; blocks.py cuts the columns of a call. weight_layout.py is the twin of both for grad_weight, whose product sums
over time.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from ..geometry import Plan, families
from . import column_tiles, target
from .tile_shapes import tall_tiles, tile_shape, tile_vectors, usual_rows

LEAST_FAR_BLOCKS = 4  # of a channel's terms
BLOCK = 32  # terms of a partial sum: torch's accuracy at 3 % of the time, where 64 has one and a half times its error
SLAB_BYTES = 1024 * 1024  # what a block of columns takes of the second-level cache; weights stream past each block
MOST_PHASES = 12  # of a stride, for all of which a tile that has those of a family leaves room as it stores
LARGEST_SLAB_BYTES = 4 * 1024 * 1024
MOST_IN_PLACE = 320  # products that a sample is a term of, at tiles' usual rows; below, copying it first would show
MOST_STREAMS = 48  # rows that are read in place side by side at little loss: prefetchers follow 32 or so
MOST_BLOCK_TAPS = 8
WIDEST_SLAB = 48  # vectors; wider ones leave too few blocks to share out evenly
SHARED_PART = 4  # times as wide as what its shifts reach is a strip, at least


class Sizes(NamedTuple):
    """What the kernels are told of a layout, up to `group_tiles`, and of a call."""

    lanes: int
    rows: int  # of a tile: whole channels, or a part of one
    tile_phases: int  # that a tile interleaves
    slots: int  # that a column of a tile takes of its target
    block: int  # terms of a partial sum
    step_in: int
    step_out: int
    lead: int
    tail: int
    few_columns: int  # up to which a tile has its lanes over its rows
    start_size: int  # of what a tile starts from, and of a column of a tile of few
    tile_channels: int  # of a tile, whole or in part
    few_tiles: int  # that a tile of few columns computes at once
    tall_tiles: int  # and those of one vector that are
    group_tiles: int  # Layout.group_tiles
    groups: int
    row_channels: int  # of a group of the output
    strip: int  # columns of a block whose rows lie together in a slab
    pitch: int  # of a strip's rows
    width: int  # columns of a block
    inner_begin: int  # where an item's blocks that are read in place begin, after one that is not,
    inner_end: int  # and where they end; 0 where all blocks are alike
    crop_in: int
    crop_out: int
    q_first: int
    positions: int  # of an item
    source_length: int
    item_columns: int  # from an item's first position to the next one's
    in_place: int  # whether blocks inside an item are read where they are
    row_sums: int  # of the sums of a row of tiles; 0 where each tile sums up all terms by itself
    few_paired: int  # whether few columns are what PAIRED_COLUMNS of column_tiles are for
    far_columns: int  # of a tile, where most terms meet no sample in so few; 0 where most do
    together: int  # tiles whose panels are made right before they are used; 0 where all panels are there
    block_channels: int  # of whose terms panels are made at a time, and all tiles met; 0 where panels are whole
    long: int  # whether other Python threads may run meanwhile: a short call gains nothing by letting them
    # what follows from these
    unpacked: int = 0  # address of the tiles of few columns whose weights are read where they are; or 0
    unpacked_columns: int = 0  # up to which they take less time
    slab_size: int = 0  # of a worker, in elements
    totals_size: int = 0  # of the sums of all tiles of its part, likewise
    made_size: int = 0  # of the panels that it makes
    list_size: int = 0  # of the list of what tiles ask for; 0 if they don't
    sums_size: int = 0  # of a tile or of a row of tiles, likewise
    starts: int = 0  # of what a few tiles start from
    own_size: int = 0  # of all scratch of a worker, likewise
    task: int = 0  # address of what a worker does,
    sum_blocks: int = 0  # and of what sums by blocks of channels; or 0


class PanelSizes(NamedTuple):
    """What the kernels are told of a layout's panels, tiles and moves; its lists follow in the same array."""

    lanes: int
    rows: int  # of a tile
    tile_phases: int
    taps: int  # of a phase
    tap_step: int
    pack: int  # address of the move for tiles whose rows are runs of taps, or 0
    pack_whole: int  # likewise, where those of all taps lie side by side; or 0
    interleave: int  # and of that for tiles whose terms lie in a row for each channel, or 0
    lay_out: int  # and of the moves of the runs that a tile leaves, and
    part_strips: int  # of the planes of a period of a source, strip by strip; or 0
    part_rows: int  # and of those of short rows, with zeros around; or 0
    copy_rows: int  # and of short rows; or 0
    pack_slab: int  # address of what packs a block of columns,
    pack_tiles: int  # of what packs the weights of tiles,
    store_columns: int  # and of what stores a staged tile
    tile_row: int  # address of the rows of tiles, for many rows that are read in place; or 0
    tall_tile: int  # and of several tiles of one vector; or 0
    few_tile: int  # and of that of few columns
    far_tile: int  # and of what sums up one block of terms of a tile of one vector,
    sum_far: int  # and of what computes tiles by it, where taps reach far; or 0
    tile_count: int  # lengths of the lists: addresses of the tiles of 1, 2, .. vectors,
    terms: int  # term_rows and term_starts,
    plane_count: int  # planes,
    phase_count: int  # and phases and first_taps


def record(sizes: type[Any]) -> np.dtype[Any]:
    """How kernels see the array that such sizes become: named fields of memory, of which an address is passed on."""
    return np.dtype([(name, np.int64) for name in sizes._fields])


SIZES, PANEL_SIZES = record(Sizes), record(PanelSizes)
HEAD = len(PanelSizes._fields)  # of the array, before its lists


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """One family of phases of a layer: those that share their shifts. Only the same object is the same."""

    fixed: tuple[int, ...]  # what Sizes says of it
    lanes: int
    rows: int
    vectors: int  # of a full tile
    tile_phases: int
    slots: int  # of a column of a tile's target
    few_columns: int
    few_tiles: int  # that are computed at once of few columns
    tall_tiles: int  # and those that are of one vector
    width: int  # columns of a block, at most
    strip: int  # columns of a strip of a slab, at most
    lead: int
    tail: int
    step_in: int
    step_out: int
    taps: int  # of a phase
    tap_step: int
    first_taps: Any  # (phases,)
    phases: Any  # (phases,)
    planes: Any  # (planes,)
    every_plane: bool  # whether they are 0, 1, .. up to the step: for a step of 1, the source as it is
    term_rows: Any  # (terms,), of a slab
    term_starts: Any  # (terms,), where in its row: lead - shift
    slab_rows: int
    row_channels: int  # of a group of the output
    itemsize: int
    apart: "Layout | None"  # with a row for each tap, so that nothing lies between items; None where no shift differs

    @property
    def row_tiles(self) -> int:
        """Tiles that cover the rows of a group."""
        return -(-self.row_channels // (self.rows // self.tile_phases)) * -(-len(self.phases) // self.tile_phases)

    @property
    def group_tiles(self) -> int:
        """Tiles that are computed one after the other, of few columns or a vector of them together."""
        return max(self.few_tiles, self.tall_tiles)

    @property
    def beyond(self) -> int:
        """Elements after the last panel that a tile of few columns loads."""
        return column_tiles.panel_width(self.rows) - self.rows

    @property
    def takes_blocks(self) -> bool:
        """Whether panels of a few channels' terms are small, and so many columns at most as several tiles share."""
        return 0 < self.taps <= MOST_BLOCK_TAPS and self.tall_tiles > 1

    @property
    def most_sums(self) -> int:
        """Elements of the sums of a tile in a vector and a few columns."""
        return self.rows * self.lanes + column_tiles.panel_width(self.rows) * column_tiles.COLUMNS[-1]

    @property
    def reaches_far(self) -> bool:
        """Whether a block of terms may meet no sample in a tile's columns: each has neighbouring taps of a channel."""
        return self.step_in == 1 and self.taps >= LEAST_FAR_BLOCKS * BLOCK

    @property
    def whole_periods(self) -> bool:
        """Whether the planes of a period of the step, from the first on, lie side by side."""
        step = self.step_in
        periods = self.planes[: len(self.planes) // step * step].reshape(-1, step)
        return bool((periods == periods[:, :1] + np.arange(step)).all())

    @property
    def side_by_side(self) -> bool:
        """Whether the runs of all taps of a channel lie side by side in the weight, in the order of taps."""
        return self.tap_step == self.tile_phases == self.step_out == len(self.phases) > 1

    @property
    def worth_copying(self) -> bool:
        """Whether tiles load a sample so often that the time in which it is copied first hardly counts."""
        return self.row_tiles * usual_rows() * self.taps > MOST_IN_PLACE

    @property
    def serves_as_it_is(self) -> bool:
        """Whether tiles may as well read the source where it is, if its rows are contiguous."""
        return self.step_in == 1 and self.every_plane and not self.worth_copying

    @property
    def many_streams(self) -> bool:
        """Whether rows that are read in place are too many to be read side by side.

        Then all tiles of a block sum up a block of terms before any sums up the next.
        """
        return self.serves_as_it_is and self.slab_rows > MOST_STREAMS and self.taps > 0

    @property
    def few_terms(self) -> bool:
        """Whether tiles that read rows in place have one block of terms: as soon computed as called one by one."""
        return self.serves_as_it_is and 0 < len(self.term_rows) <= BLOCK


@functools.lru_cache(maxsize=64)
def forward_layouts(plan: Plan, channels: int, row_channels: int, itemsize: int) -> tuple[Layout, ...] | None:
    """The families of phases of a forward pass over so many input channels of a group; None where no slab fits."""
    step = plan.dilation // plan.phase_step
    layouts = []
    for first_shift, count, phases, first_taps in families(plan):
        shifts = np.array([first_shift + m * step for m in range(count)], np.int64)
        own = _layout(
            planes=np.zeros(1, np.int64),
            plane_of_tap=np.zeros(count, np.int64),
            shifts=shifts,
            lead=int(shifts.max(initial=0)),
            tail=0,
            channels=channels,
            row_channels=row_channels,
            itemsize=itemsize,
            phases=np.array(phases),
            first_taps=np.array(first_taps),
            taps=count,
            tap_step=plan.tap_step,
            step_in=1,
            step_out=plan.stride,
        )
        if own is None:
            return None
        layouts.append(own)
    return tuple(layouts)


@functools.lru_cache(maxsize=64)
def grad_input_layouts(plan: Plan, channels: int, row_channels: int, itemsize: int) -> tuple[Layout, ...] | None:
    """The one family of the input gradient over so many output channels of a group; None where no slab fits."""
    taps = np.arange(plan.kernel_size)
    planes, plane_of_tap = np.unique(taps * plan.dilation % plan.stride, return_inverse=True)
    shifts = taps * plan.dilation // plan.stride
    own = _layout(
        planes=planes,
        plane_of_tap=plane_of_tap,
        shifts=-shifts,
        lead=0,
        tail=int(shifts[-1]),
        channels=channels,
        row_channels=row_channels,
        itemsize=itemsize,
        phases=np.zeros(1, np.int64),
        first_taps=np.zeros(1, np.int64),
        taps=plan.kernel_size,
        tap_step=1,
        step_in=plan.stride,
        step_out=1,
    )
    return None if own is None else (own,)


def _layout(*, planes: Any, plane_of_tap: Any, shifts: Any, lead: int, tail: int, step_in: int,
            **rest: Any) -> Layout | None:  # fmt: skip
    """The layout of a family, and with it the one that has a row for each tap; None where no slab fits."""
    apart = None
    if lead + tail > 0:
        own_planes, own_plane_of_tap = np.unique(planes[plane_of_tap] - step_in * shifts, return_inverse=True)
        apart = _slab_layout(
            planes=own_planes, plane_of_tap=own_plane_of_tap, shifts=np.zeros_like(shifts), lead=0, tail=0,
            step_in=step_in, apart=None, **rest,
        )  # fmt: skip
    return _slab_layout(
        planes=planes, plane_of_tap=plane_of_tap, shifts=shifts, lead=lead, tail=tail, step_in=step_in, apart=apart,
        **rest,
    )  # fmt: skip


def _slab_layout(*, channels: int, row_channels: int, itemsize: int, planes: Any, plane_of_tap: Any, shifts: Any,
                 lead: int, tail: int, phases: Any, step_in: int, step_out: int,
                 **rest: Any) -> Layout | None:  # fmt: skip
    """A layout with such planes and shifts; None where no slab fits."""
    lanes = target.vector_bytes() // itemsize
    tile_rows, tile_phases = tile_shape(row_channels, len(phases))
    vectors = tile_vectors(tile_rows)
    full = vectors * lanes
    # neighbouring phases are stored at once, with room for the phases of other families between those of two columns
    neighbours = tile_phases == len(phases) and step_out <= MOST_PHASES and phases[-1] - phases[0] < tile_phases
    slots = step_out if neighbours else tile_phases
    slab_rows = channels * len(planes)
    strip = strip_columns(full, lead + tail)
    room = SLAB_BYTES // itemsize // slab_rows
    width = full * max(1, min(room * strip // (lead + strip + tail) // full, WIDEST_SLAB // vectors))
    strip = min(strip, width)
    if -(-width // strip) * (lead + strip + tail) * slab_rows * itemsize > LARGEST_SLAB_BYTES:
        return None
    few = column_tiles.few_columns(lanes, tile_rows)
    start_size = column_tiles.panel_width(tile_rows)
    few_tiles, tall = column_tiles.few_tiles(lanes, tile_rows), tall_tiles(tile_rows)
    return Layout(
        fixed=(lanes, tile_rows, tile_phases, slots, BLOCK, step_in, step_out, lead, tail, few, start_size,
               tile_rows // tile_phases, few_tiles, tall),
        lanes=lanes, rows=tile_rows, vectors=vectors, tile_phases=tile_phases, slots=slots, width=width, strip=strip,
        lead=lead, tail=tail, few_columns=few, few_tiles=few_tiles, tall_tiles=tall,
        term_rows=(np.arange(channels)[:, None] * len(planes) + plane_of_tap).ravel(),
        term_starts=np.tile(lead - shifts, channels), phases=phases, planes=planes,
        slab_rows=slab_rows, row_channels=row_channels, itemsize=itemsize, step_in=step_in, step_out=step_out,
        every_plane=np.array_equal(planes, np.arange(step_in)), **rest,
    )  # fmt: skip


def strip_columns(full: int, reach: int) -> int:
    """Columns of a strip: a full tile's, or so many that those which neighbouring strips share hardly count."""
    return full * max(1, -(-reach * SHARED_PART // full))
