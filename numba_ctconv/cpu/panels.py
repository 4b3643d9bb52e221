"""Weights packed for the tiles: made once for a layer, or for a call. Called by the engine."""

import functools
from typing import Any, NamedTuple

import numpy as np

from ..geometry import Plan
from . import layout, microkernels, moves, packing, tile_rows
from .blocks import MOST_TOGETHER
from .layout import Layout, PanelSizes


class Panels(NamedTuple):
    """The panels of one family of phases."""

    layout: Layout
    weight: Any  # (groups, term channels, row channels, taps), a view
    numbers: Any  # a PanelSizes, as an array
    tiles: Any  # addresses of the tiles
    lay_out: int  # and of moves: of the runs that a tile leaves, and
    deinterleave: int  # of the planes of a source
    tile_row: int  # address of the rows of tiles, for many rows that are read in place
    together: int  # tiles that are packed together where they are neighbours in the weight
    values: Any  # [group][tile][term][row]; None where a call makes them


class Rows(NamedTuple):
    """The weight of a depthwise layer, whose rows are computed in place."""

    values: Any  # a copy, contiguous
    finite: bool


class Packed(NamedTuple):
    """A weight as one operation takes it."""

    panels: tuple[Panels, ...]
    finite: bool  # an absent tap or sample is a product with zero, which Inf and NaN would not let vanish


def of_forward(weight: Any, plan: Plan, groups: int, *, now: bool) -> Packed | None:
    """The panels of forward, or `now` or later what makes them; None where the layer has no tiled layout."""
    split = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, C_in/groups, C_out/groups, K), a view
    layouts = layout.forward_layouts(plan, split.shape[1], split.shape[2], weight.itemsize)
    return None if layouts is None else _packed(split, layouts, MOST_TOGETHER, now)


def of_grad_input(weight: Any, plan: Plan, groups: int, *, now: bool) -> Packed | None:
    """The panels of grad_input; as above."""
    split = weight.reshape(groups, -1, *weight.shape[1:]).transpose(0, 2, 1, 3)
    layouts = layout.grad_input_layouts(plan, split.shape[1], split.shape[2], weight.itemsize)
    return None if layouts is None else _packed(split, layouts, 1, now)


def of_rows(weight: Any) -> Rows:
    """The weight of a depthwise layer."""
    return Rows(np.array(weight, order="C"), bool(np.isfinite(weight).all()))


def values_of(family: Panels) -> tuple[Any, bool]:
    """All panels of a family, and whether they are finite."""
    own, weight = family.layout, family.weight
    tiles = weight.shape[0] * own.row_tiles(weight.shape[2])
    values = np.empty(tiles * len(own.term_rows) * own.rows + own.beyond, weight.dtype)
    infinite = np.zeros(-(-tiles // family.together), weight.dtype)
    packing.pack_panels(weight, own.first_taps, family.numbers, family.together, infinite, values)
    return values, not np.count_nonzero(infinite)


def _packed(split: Any, layouts: tuple[Layout, ...], together: int, now: bool) -> Packed:
    panels, finite = [], True
    for own in layouts:
        family = Panels(own, split, *_compiled(own, split.shape[2], split.itemsize), together, None)
        if now:
            values, own_finite = values_of(family)
            family, finite = family._replace(values=values), finite and own_finite
        panels.append(family)
    return Packed(tuple(panels), finite)


@functools.lru_cache(maxsize=64)
def _compiled(own: Layout, row_channels: int, size: int) -> tuple[Any, Any, int, int, int]:
    """What a family's packing is told, and the addresses of its tiles and moves."""
    pack = moves.moves.pack_runs(size, own.tile_phases, own.rows // own.tile_phases)
    interleave = moves.moves.interleave(size, own.lanes, own.rows) if own.step_out == 1 else 0
    return (
        np.array(PanelSizes(own.lanes, own.rows, own.tile_phases, own.taps, own.tap_step, pack, interleave)),
        microkernels.tiles(size, own.lanes, own.rows, own.vectors, own.tile_phases, own.slots),
        moves.moves.lay_out(size, own.tile_phases),
        moves.moves.deinterleave(size, own.lanes, own.step_in) if own.every_plane else 0,
        tile_rows.rows_of_tiles(size, own.lanes, own.rows, own.vectors, own.tile_phases, own.slots)
        if own.many_streams(row_channels)
        else 0,
    )
