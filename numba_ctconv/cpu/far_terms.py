"""What the tiled product computes of a tile whose taps reach much farther than the input: long filters, short chunks.

Most of a channel's terms meet no sample in the columns of a tile. Those that do are neighbours, so each tile sums up
these alone; narrow tiles meet fewest in vain. A term that is left out would be a product with zero, which changes no
sum, and blocks of terms end where they always do: so each element has the bits that all terms would give it.
"""

from .compilation import helper, task
from .intrinsics import address_of, call_task
from .layout import PANEL_SIZES, SIZES
from .rows import count_below, first_not_below
from .storing import direct_target, place_of
from .tile_sums import parts_of, start_from


@task("i r1 sizes n1 panel_sizes n1 i i i i i i i i c1 w3", sizes=SIZES, panel_sizes=PANEL_SIZES)
def sum_far(
    row_tile, bias, sizes, phases, panel_sizes, term_starts, panel_at, block_at, block_offsets, strip_width, strip_size,
    group, column, columns, scratch, output,
):  # fmt: skip
    """Compute the rows of a tile in the columns of a block, an item's after the other's."""
    rows, size, taps = sizes.rows, output.itemsize, panel_sizes.taps
    span = sizes.far_columns  # of a tile
    tile = panel_sizes.far_tile if span == sizes.lanes else panel_sizes.tile_row
    sums_at, staging, start = parts_of(scratch, sizes)
    channel, phase, channels = place_of(row_tile, sizes, phases, group)
    start_from(start, bias, sizes, channel, channels)
    done = 0
    while done < columns:
        strip, at = done // strip_width, (column + done) % sizes.item_columns
        own = min(span, columns - done, sizes.positions - at, (strip + 1) * strip_width - done)
        if own <= 0:  # between two items
            done += sizes.item_columns - at
            continue
        target = direct_target(sizes, phases, column + done, span, channel, channels, rows, output)
        target = target if own == span else 0
        to, step = address_of(staging), span * sizes.slots
        if target != 0:
            to, step = target, output.strides[1] // size
        slab_at = block_at + strip * strip_size + (done - strip * strip_width) * size
        begin, end = terms_met(term_starts, taps, sizes, at, span)
        for first in range(begin, term_starts.size, taps):  # those of a channel
            r, last = first, first + end - begin
            while r < last:
                stop = min((r // sizes.block + 1) * sizes.block, last)
                ends = stop == last and first + taps >= term_starts.size
                call_task(
                    tile,
                    (panel_at + r * rows * size, slab_at, block_offsets + r * 8, stop - r, 1,
                     address_of(start) if r == begin else 0, sums_at, to if ends else 0, step),
                )  # fmt: skip
                r = stop
        if target == 0:
            call_task(
                panel_sizes.store_columns,
                (staging, sizes, phases, panel_sizes, column + done, own, span * sizes.slots, sizes.slots, channel,
                 channels, phase, output),
            )  # fmt: skip
        done += own


@helper
def terms_met(term_starts, taps, sizes, at, span):
    """The terms of a channel, from the first to the last, that meet a sample in columns of an item; or one in vain.

    Term m begins at sample `low` - m·step, or + for a step that is negative, of its first column.
    """
    low = sizes.q_first + at - sizes.lead - sizes.crop_in + term_starts[0]
    after, beyond, step = low - sizes.source_length + 1, low + span, term_starts[0] - term_starts[1]
    if step < 0:
        after, beyond, step = 1 - beyond, 1 - after, -step
    begin = first_not_below(after, step)
    end = count_below(beyond, step, taps)
    return (begin, end) if begin < end else (0, 1)
