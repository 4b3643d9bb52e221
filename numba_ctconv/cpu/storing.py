"""Where the tiles of the tiled product lie in the output, and storing what they leave in memory of their own.

Part of tiled.product, the counterpart of packing.py.
"""

from .compilation import helper, part, task
from .intrinsics import address_of, call_rows, call_task
from .layout import PANEL_SIZES, SIZES
from .rows import count_below, first_not_below


@part
def place_of(row_tile, sizes, phases, group):
    """The first output channel and phase of a tile, and how many channels it has."""
    channel, phase = row_tile, 0
    if phases.size > sizes.tile_phases:
        phase_tiles = -(-phases.size // sizes.tile_phases)
        channel, phase = row_tile // phase_tiles, row_tile % phase_tiles * sizes.tile_phases
    channel *= sizes.tile_channels  # of the group
    return (
        channel + group * sizes.row_channels, phase, min(sizes.tile_channels, sizes.row_channels - channel),
    )  # fmt: skip


@helper
def direct_target(sizes, phases, column, span, channel, channels, rows, output):
    """The address that a tile can be stored at as it is; 0 where it hangs over an edge or its samples lie apart."""
    step_out = sizes.step_out
    if sizes.slots != step_out or channels * sizes.tile_phases != rows:
        return 0
    if output.strides[2] != output.itemsize or output.strides[1] % output.itemsize != 0:
        return 0
    item = column // sizes.item_columns
    position = column - item * sizes.item_columns
    l = (sizes.q_first + position) * step_out + phases[0] - sizes.crop_out
    if position + span > sizes.positions or l < 0 or l + span * step_out > output.shape[2]:
        return 0
    return address_of(output) + item * output.strides[0] + channel * output.strides[1] + l * output.itemsize


@part
def store_tiles(
    staging, sizes, phases, panel_sizes, column, columns, tile_step, channel_step, column_step, first, count, group,
    output,
):  # fmt: skip
    """Store staged tiles: at once where they are whole channels that all lie so far apart."""
    even = sizes.tile_channels == 1 or tile_step == sizes.tile_channels * channel_step
    if even and phases.size <= sizes.tile_phases:
        channel = first * sizes.tile_channels
        channels = min(count * sizes.tile_channels, sizes.row_channels - channel)
        call_task(
            panel_sizes.store_columns,
            (staging, sizes, phases, panel_sizes, column, columns, tile_step // sizes.tile_channels, column_step,
             channel + group * sizes.row_channels, channels, 0, output),
        )  # fmt: skip
        return
    for t in range(count):
        channel, phase, channels = place_of(first + t, sizes, phases, group)
        call_task(
            panel_sizes.store_columns,
            (staging[t * tile_step :], sizes, phases, panel_sizes, column, columns, channel_step, column_step, channel,
             channels, phase, output),
        )  # fmt: skip


@task("c1 sizes n1 panel_sizes i i i i i i i w3", sizes=SIZES, panel_sizes=PANEL_SIZES)
def store_columns(
    staging, sizes, phases, panel_sizes, column, columns, channel_step, column_step, channel, channels, phase, output
):  # fmt: skip
    """Store what of a staged tile belongs to a sample that exists."""
    item_columns, step = sizes.item_columns, sizes.step_out
    own_phases = min(sizes.tile_phases, phases.size - phase)
    last_phase = phases[phase + own_phases - 1]
    lay_out, copy_rows = panel_sizes.lay_out, panel_sizes.copy_rows
    neighbours = lay_out != 0 and own_phases == sizes.tile_phases and last_phase - phases[phase] == own_phases - 1
    neighbours = neighbours and output.strides[2] == output.itemsize
    item = column // item_columns
    position = column - item * item_columns
    j = 0
    while j < columns:  # an item's columns after the other's; those after its positions are no samples
        run = min(item_columns - position, columns - j)
        end = max(min(sizes.positions - position, run), 0)
        q = sizes.q_first + position
        # the columns of which all phases lie in the output; at the others each is looked at
        first = min(first_not_below(sizes.crop_out - phases[phase] - q * step, step), end)
        stop = max(count_below(output.shape[2] + sizes.crop_out - last_phase - q * step, step, end), first)
        if neighbours and stop > first:
            l = (q + first) * step + phases[phase] - sizes.crop_out
            for c in range(channels):
                call_task(
                    lay_out,
                    (address_of(staging) + (c * channel_step + (j + first) * column_step) * staging.itemsize,
                     column_step, stop - first,
                     address_of(output) + item * output.strides[0] + (channel + c) * output.strides[1]
                     + l * output.itemsize,
                     step),
                )  # fmt: skip
        else:
            stop = first
        for k in range(end):
            if first <= k < stop:
                continue
            at, l = (j + k) * column_step, (q + k) * step + phases[phase] - sizes.crop_out
            if neighbours and copy_rows != 0:  # what of its phases lies in the output
                p = max(-l, 0)
                count = min(own_phases, output.shape[2] - l) - p
                if count > 0:
                    target_at = address_of(output) + item * output.strides[0] + channel * output.strides[1]
                    call_rows(
                        copy_rows,
                        (address_of(staging) + (at + p) * staging.itemsize, channel_step * staging.itemsize, 0, count,
                         channels, target_at + (l + p) * output.itemsize, output.strides[1], 0, count),
                    )  # fmt: skip
            else:
                for p in range(own_phases):
                    l = (q + k) * step + phases[phase + p] - sizes.crop_out
                    if 0 <= l < output.shape[2]:
                        for c in range(channels):
                            output[item, channel + c, l] = staging[c * channel_step + at + p]
        j += run
        item += 1
        position = 0
