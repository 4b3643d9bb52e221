"""Weights packed for the tiles: made once for a layer, or for a call. Called by the engine."""

from typing import Any, NamedTuple

import numpy as np

from ..geometry import Plan
from . import layout, microkernels, moves, packing, tile_rows
from .layout import Layout

TOGETHER = 16  # tiles that are packed together where they are neighbours in the weight


class Panels(NamedTuple):
    """The panels of one family of phases."""

    layout: Layout
    values: Any  # [group][tile][term][row]
    tiles: Any  # addresses of the tiles
    lay_out: int  # and of moves: of the runs that a tile leaves, and
    deinterleave: int  # of the planes of a source
    tile_row: int  # address of the rows of tiles, for many rows that are read in place


class Rows(NamedTuple):
    """The weight of a depthwise layer, whose rows are computed in place."""

    values: Any  # a copy, contiguous
    finite: bool


class Packed(NamedTuple):
    """A weight as one operation takes it."""

    panels: tuple[Panels, ...]
    finite: bool  # an absent tap or sample is a product with zero, which Inf and NaN would not let vanish


def of_forward(weight: Any, plan: Plan, groups: int) -> Packed | None:
    """The panels of forward; None where the layer has no tiled layout."""
    split = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, C_in/groups, C_out/groups, K), a view
    layouts = layout.forward_layouts(plan, split.shape[1], split.shape[2], weight.itemsize)
    return None if layouts is None else _packed(split, layouts, TOGETHER)


def of_grad_input(weight: Any, plan: Plan, groups: int) -> Packed | None:
    """The panels of grad_input; None where the layer has no tiled layout."""
    split = weight.reshape(groups, -1, *weight.shape[1:]).transpose(0, 2, 1, 3)
    layouts = layout.grad_input_layouts(plan, split.shape[1], split.shape[2], weight.itemsize)
    return None if layouts is None else _packed(split, layouts, 1)


def of_rows(weight: Any) -> Rows:
    """The weight of a depthwise layer."""
    return Rows(np.array(weight, order="C"), bool(np.isfinite(weight).all()))


def _packed(split: Any, layouts: tuple[Layout, ...], together: int) -> Packed:
    groups, term_channels, row_channels, _ = split.shape
    panels, finite = [], True
    for own in layouts:
        tiles = groups * own.row_tiles(row_channels)
        beyond = microkernels.panel_width(own.rows) - own.rows  # what a tile of few columns loads after the last
        values = np.empty(tiles * term_channels * own.taps * own.rows + beyond, split.dtype)
        infinite = np.zeros(tiles, split.dtype)
        pack = moves.moves.pack_runs(split.itemsize, own.tile_phases, own.rows // own.tile_phases)
        interleave = moves.moves.interleave(split.itemsize, own.lanes, own.rows) if own.step_out == 1 else 0
        packing.pack_panels(
            split, own.first_taps, own.tap_step, own.taps, own.rows, own.tile_phases, together, pack, interleave,
            own.lanes, infinite, values,
        )  # fmt: skip
        panels.append(
            Panels(
                own,
                values,
                microkernels.tiles(split.itemsize, own.lanes, own.rows, own.vectors, own.tile_phases, own.slots),
                moves.moves.lay_out(split.itemsize, own.tile_phases),
                moves.moves.deinterleave(split.itemsize, own.lanes, own.step_in) if own.every_plane else 0,
                tile_rows.rows_of_tiles(split.itemsize, own.lanes, own.rows, own.vectors, own.tile_phases, own.slots)
                if own.many_streams(row_channels)
                else 0,
            )
        )
        finite = finite and not np.isnan(infinite).any()
    return Packed(tuple(panels), finite)
