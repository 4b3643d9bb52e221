"""The layout of grad_weight's tiled product: which planes and shifts a layer has, and how its columns are cut.

Pure Python and NumPy over geometry.Plan, cached by layer: nothing here depends on a length or a batch but
`weight_sizes`. Called by the engine.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from ..geometry import Plan
from . import target
from .layout import BLOCK, LARGEST_SLAB_BYTES, tile_shape, tile_vectors

STRETCH_BYTES = 256 * 1024  # what the columns of a stretch take of it in grad_weight, beside their sums
STRETCH = 256  # terms of time that a tile of grad_weight sums up
SUMS_BYTES = 2 * 1024 * 1024  # sums of grad_weight that wait while time passes


class WeightSizes(NamedTuple):
    """What the kernel of grad_weight is told of a call."""

    lanes: int
    rows: int  # of a tile: input channels
    block: int  # terms of a partial sum
    stretch: int  # terms of a tile
    groups: int
    parts: int  # that the rows are cut into, for the workers
    width: int  # columns (output channels and their planes) of a block
    pitch: int  # of a slab's rows
    slab_rows: int
    stride: int
    crop_left: int
    in_order: int  # shifts whose planes are neighbouring taps


class WeightLayout(NamedTuple):
    """The planes and shifts of a layer's grad_weight, and which tap stands where."""

    lanes: int
    rows: int
    vectors: int
    planes: Any  # (planes,)
    shifts: Any  # (shifts,), rising
    taps: Any  # (shifts · planes,), -1 where no tap has that shift and plane
    in_order: int  # shifts, from the first on, whose planes are neighbouring taps in order


@functools.lru_cache(maxsize=64)
def weight_layout(plan: Plan, row_channels: int, itemsize: int) -> WeightLayout | None:
    """The layout of grad_weight; None where most (shift, plane) pairs would have no tap."""
    taps = np.arange(plan.kernel_size)
    planes, plane_of_tap = np.unique(taps * plan.dilation % plan.stride, return_inverse=True)
    shifts, shift_of_tap = np.unique(taps * plan.dilation // plan.stride, return_inverse=True)
    if len(planes) * len(shifts) > 2 * plan.kernel_size + len(planes):
        return None
    where = np.full(len(shifts) * len(planes), -1)
    where[shift_of_tap * len(planes) + plane_of_tap] = taps
    rows, _ = tile_shape(row_channels, 1)
    ordered = (where == np.arange(len(where))).reshape(len(shifts), len(planes)).all(axis=1)
    in_order = int(np.cumprod(ordered).sum())
    lanes = target.vector_bytes() // itemsize
    return WeightLayout(lanes, rows, tile_vectors(rows), planes, shifts, where, in_order)


def weight_sizes(layout: WeightLayout, groups: int, batch: int, length: int, row_channels: int, channels: int,
                 workers: int, stride: int, crop_left: int, itemsize: int) -> WeightSizes | None:  # fmt: skip
    """The sizes of a call; None where its scratch memory would be too much."""
    terms = batch * length
    reach = int(layout.shifts[-1])
    stretch = min(STRETCH, terms)
    # rows that a stretch spans: its terms, what follows the last, and what lies between its items
    slab_rows = stretch + reach * (stretch // length + 2)
    columns = channels * len(layout.planes)
    sum_rows = -(-row_channels // layout.rows) * layout.rows * len(layout.shifts)
    most = min(STRETCH_BYTES // itemsize // slab_rows, SUMS_BYTES // itemsize // sum_rows)
    planes = len(layout.planes)
    full = layout.vectors * layout.lanes
    most = min(columns, full * max(1, most // full))
    # held against the widest block that any number of workers gets, so that workers do not choose the algorithm
    widest = -(-most // planes) * planes + layout.lanes
    if max(slab_rows, sum_rows) * widest * itemsize > LARGEST_SLAB_BYTES:
        return None
    blocks = -(-columns // most)
    blocks = -(-blocks // workers) * workers if columns >= workers * full else blocks
    width = -(-columns // blocks // planes) * planes  # whole channels
    pitch = -(-width // layout.lanes) * layout.lanes
    blocks = -(-columns // width)
    row_tiles = -(-row_channels // layout.rows)
    parts = 1 if groups * blocks >= workers else min(row_tiles, -(-workers // (groups * blocks)))
    return WeightSizes(
        lanes=layout.lanes, rows=layout.rows, block=BLOCK, stretch=stretch, groups=groups, parts=parts, width=width,
        pitch=pitch, slab_rows=slab_rows, stride=stride, crop_left=crop_left, in_order=layout.in_order,
    )  # fmt: skip
