"""Weights packed for the tiles: made once for a layer, or for a call. Called by the engine."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from ..geometry import Plan
from . import column_tiles, far_terms, layout, microkernels, moves, packing, storing, tile_rows
from .layout import Layout, PanelSizes
from .target import CACHE_LINE

MOST_TOGETHER = 16  # tiles that are packed at once, which may lie side by side in the weight


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """One family of phases, as the kernels take it. Only the same object is the same."""

    layout: Layout
    numbers: Any  # a PanelSizes and its lists, as an array
    together: int  # tiles that are packed together where they are neighbours in the weight
    apart: "Family | None"  # the same with a row for each tap


Families = tuple[Family, ...]  # of a layer


class Rows(NamedTuple):
    """The weight of a depthwise layer, whose rows are computed in place."""

    values: Any  # a copy, contiguous
    finite: bool


class Packed(NamedTuple):
    """A weight as one operation takes it."""

    weight: Any  # (groups, term channels, row channels, taps), a view
    families: Families
    panels: tuple[Any, ...]  # of each, [group][tile][term][row]; None where a call makes them
    finite: bool  # an absent tap or sample is a product with zero, which Inf and NaN would not let vanish


def of_forward(weight: Any, plan: Plan, groups: int, *, now: bool) -> Packed | None:
    """The panels of forward, or `now` or later what makes them; None where the layer has no tiled layout."""
    channels, row_channels, taps = weight.shape
    split = weight.reshape(groups, channels // groups, row_channels, taps)  # a view
    families = _forward_families(plan, channels // groups, row_channels, weight.itemsize)
    return None if families is None else _packed(split, families, now)


def of_grad_input(weight: Any, plan: Plan, groups: int, *, now: bool) -> Packed | None:
    """The panels of grad_input; as above."""
    row_channels, channels, taps = weight.shape
    split = weight.reshape(groups, row_channels // groups, channels, taps).transpose(0, 2, 1, 3)
    families = _grad_input_families(plan, channels, row_channels // groups, weight.itemsize)
    return None if families is None else _packed(split, families, now)


def of_rows(weight: Any, *_how: Any, now: bool) -> Rows:  # noqa: ARG001  # as the others take it
    """The weight of a depthwise layer, whatever its plan."""
    return Rows(np.array(weight, order="C"), bool(np.isfinite(weight).all()))


def values_of(weight: Any, family: Family) -> tuple[Any, bool]:
    """All panels of a family, and whether they are finite."""
    own, together = family.layout, family.together
    tiles = weight.shape[0] * own.row_tiles
    values = _aligned(tiles * len(own.term_rows) * own.rows + own.beyond, weight.dtype)
    batches = -(-tiles // together)
    infinite = np.zeros(batches, weight.dtype)
    task_at = packing.pack_batch.address(weight.dtype)
    packing.pack_panels(weight, family.numbers, together, batches, task_at, infinite, values)
    return values, not np.count_nonzero(infinite)


def _aligned(size: int, dtype: Any) -> Any:
    """An array that begins at a cache line: else half of the vectors that tiles load would lie in two."""
    whole = np.empty(size * dtype.itemsize + CACHE_LINE, np.uint8)
    begin = -whole.ctypes.data % CACHE_LINE
    return whole[begin : begin + size * dtype.itemsize].view(dtype)


def _packed(split: Any, families: Families, now: bool) -> Packed:
    if not now:
        return Packed(split, families, (None,) * len(families), True)
    values, finite = zip(*(values_of(split, family) for family in families), strict=True)
    return Packed(split, families, values, all(finite))


@functools.lru_cache(maxsize=64)
def _forward_families(plan: Plan, channels: int, row_channels: int, size: int) -> Families | None:
    return _families(layout.forward_layouts(plan, channels, row_channels, size), MOST_TOGETHER)


@functools.lru_cache(maxsize=64)
def _grad_input_families(plan: Plan, channels: int, row_channels: int, size: int) -> Families | None:
    return _families(layout.grad_input_layouts(plan, channels, row_channels, size), 1)


def _families(layouts: tuple[Layout, ...] | None, together: int) -> Families | None:
    if layouts is None:
        return None
    dtype = np.dtype(f"f{layouts[0].itemsize}")
    packing.pack_panels.compile(dtype)  # the first call compiles what any length can need
    packing.pack_batch.address(dtype)
    return tuple(_family(own, together) for own in layouts)


def _family(own: Layout, together: int) -> Family:
    apart = None if own.apart is None else _family(own.apart, together)
    return Family(own, _numbers(own), together, apart)


def _numbers(own: Layout) -> Any:
    """A PanelSizes and its lists, with the addresses of the tiles and moves."""
    size, far = own.itemsize, own.reaches_far
    dtype = np.dtype(f"f{size}")
    tiles = microkernels.tiles(size, own.lanes, own.rows, own.vectors, own.tile_phases, own.slots)
    sizes = PanelSizes(
        own.lanes,
        own.rows,
        own.tile_phases,
        own.taps,
        own.tap_step,
        pack=moves.moves.pack_runs(size, own.tile_phases, own.rows // own.tile_phases),
        pack_whole=moves.moves.pack_whole(size, own.tile_phases, own.rows // own.tile_phases, own.taps)
        if own.side_by_side
        else 0,
        interleave=moves.moves.interleave(size, own.lanes, own.rows) if own.step_out == 1 else 0,
        lay_out=moves.moves.lay_out(size, own.tile_phases),
        part_strips=moves.moves.part_strips(size, own.lanes, own.step_in) if own.whole_periods else 0,
        part_rows=moves.moves.part_rows(size, own.step_in) if own.whole_periods else 0,
        copy_rows=moves.moves.copy_rows(size),
        pack_slab=packing.pack_slab.address(dtype),
        pack_tiles=packing.pack_tiles.address(dtype),
        store_columns=storing.store_columns.address(dtype),
        tile_row=tile_rows.rows_of_tiles(size, own.lanes, own.rows, own.vectors, own.tile_phases, own.slots)
        if own.many_streams or own.few_terms or far
        else 0,
        tall_tile=tile_rows.tall_tiles(size, own.lanes, own.rows, own.tall_tiles, own.tile_phases, own.slots),
        far_tile=tile_rows.rows_of_tiles(size, own.lanes, own.rows, 1, own.tile_phases, own.slots) if far else 0,
        sum_far=far_terms.sum_far.address(dtype) if far else 0,
        few_tile=column_tiles.column_tiles(size, own.lanes, own.rows, paired=own.taps == 2),
        tile_count=len(tiles),
        terms=len(own.term_rows),
        plane_count=len(own.planes),
        phase_count=len(own.phases),
    )
    return np.concatenate(
        (sizes, tiles, own.term_rows, own.term_starts, own.planes, own.phases, own.first_taps), dtype=np.int64
    )
