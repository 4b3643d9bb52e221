"""The fast path of forward and grad_input on the CPU: a matrix product whose right-hand rows are shifted rows.

Both operations are, for a family of phases that share their shifts,

    target[o, q·step_out + phase - crop_out] = start[o] + Σ_r panel[r, (o, phase)] · row_r[q - shift_r],

where a term r is a (channel, tap) and row_r is a plane of the source: source[channel, q·step_in + plane - crop_in].
Forward has one plane a channel (step_in 1) and interleaves phases as it stores (step_out = stride); grad_input splits
the output gradient into planes (step_in = stride) and stores one phase. layout.py says which shifts and planes there
are, microkernels.py computes the tiles.

The columns of the product are the positions q of all items, one after another. Between those of two items lie columns
for what the shifts reach of either, or zero where the source has ended. So short inputs share a vector, and a column
that belongs to no position is computed and dropped. A row of a slab has `lead` columns before them and `tail` after.

Called by the engine with its scratch memory; nothing here allocates or checks. Each element is summed in one order that
depends on the layer alone.
"""

from numba import prange

from .compilation import helper, kernel, part
from .intrinsics import (
    address_of,
    borrowed,
    call_move,
    call_rows,
    call_tile,
    integers,
    release_gil,
    store_integer,
    take_gil,
)
from .layout import PanelSizes, Sizes
from .microkernels import COLUMNS
from .packing import lists_of, pack_slab, pack_tiles, panel_sizes_in, tiles_of
from .rows import count_below, first_not_below, nothing_of, to_line
from .target import CACHE_LINE

sizes_in = integers(len(Sizes._fields))


@kernel("r3 r1 c1 n1 n1 i r4 c1 w3", nogil=False)
def product(source, bias, panels, panel_numbers, numbers, workers, weight, scratch, output):
    """Workers share (group, block of columns, part of the rows) out evenly and pack a block of columns once.

    `numbers` are a layout.Sizes, `panel_numbers` a layout.PanelSizes and its lists. Scratch, one after the other:
    offsets (2, terms) of int64, into a slab and into rows that are read where they are; of each worker a slab
    (strips · rows · pitch), sums of a tile or of a row of tiles, staging, and what two tiles start from; an element a
    worker; and where some tiles are packed `together`, their panels, in place of `panels`. In the end its first element
    is NaN where a weight was packed that is not finite, else 0.
    """
    source, bias, panels, weight = borrowed(source), borrowed(bias), borrowed(panels), borrowed(weight)
    scratch, output, panel_numbers = borrowed(scratch), borrowed(output), borrowed(panel_numbers)
    sizes, panel_sizes = Sizes(*sizes_in(numbers)), PanelSizes(*panel_sizes_in(panel_numbers))
    tiles, term_rows, term_starts, planes, phases, first_taps = lists_of(panel_numbers, panel_sizes)
    gil = release_gil(sizes.long)
    groups, parts, size = sizes.groups, sizes.parts, panels.itemsize
    row_tiles = tiles_of(weight, first_taps, panel_sizes)
    column_end = (source.shape[0] - 1) * sizes.item_columns + sizes.positions
    blocks = -(-column_end // sizes.width)
    tasks = groups * blocks * parts
    group_tiles = max(sizes.few_tiles, sizes.tall_tiles)
    unit = group_tiles if parts * group_tiles < row_tiles + group_tiles else 1  # of tiles that are shared out
    units = -(-row_tiles // unit)
    terms = term_rows.size
    panel_size = terms * sizes.rows
    strip_size = source.shape[1] // groups * planes.size * sizes.pitch * size
    offsets_at = address_of(scratch)
    for r in range(terms):
        store_integer(offsets_at + r * 8, term_rows[r] * sizes.pitch + term_starts[r])
    row_step = source.strides[1] // size
    for r in range(terms if sizes.in_place != 0 else 0):
        store_integer(offsets_at + (terms + r) * 8, term_rows[r] * row_step + term_starts[r] - sizes.lead)
    room = scratch[2 * terms * 8 // size :]
    infinite = room[workers * sizes.own_size :]
    for worker in prange(workers):
        packed = -1
        slab = room[worker * sizes.own_size :][: sizes.slab_size]
        own = room[worker * sizes.own_size :][sizes.slab_size : sizes.own_size]
        totals, own = own[: sizes.totals_size], own[sizes.totals_size :]
        made = infinite[workers + worker * sizes.made_size :][: sizes.made_size]
        made = made[to_line(made) if sizes.made_size > 0 else 0 :]
        own = own[to_line(own) :]  # else every vector of sums would lie in two lines
        check = scratch.dtype.type(0)
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            group, column = task // parts // blocks, task // parts % blocks * sizes.width
            columns = min(sizes.width, column_end - column)
            block_at, block_offsets, strip_width = address_of(slab), offsets_at, sizes.strip
            source_at = direct_source(source, sizes, group, column, columns)
            if source_at != 0:
                block_at, block_offsets, strip_width = source_at, offsets_at + terms * 8, columns
            elif task // parts != packed:
                pack_slab(source, planes, sizes, panel_sizes, group, column, columns, slab)
                packed = task // parts
            row_begin = task % parts * units // parts * unit
            row_end = min((task % parts + 1) * units // parts * unit, row_tiles)
            if sizes.block_channels > 0:
                check += sum_blocks(
                    row_begin, row_end, group_tiles, bias, sizes, phases, tiles, panel_sizes, first_taps, terms, weight,
                    block_at, block_offsets, group, column, columns, made, totals, own, output,
                )  # fmt: skip
                continue
            together = sizes.together if sizes.together > 0 else max(1, row_end - row_begin)
            for begin in range(row_begin, row_end, together):
                end, first = min(begin + together, row_end), group * row_tiles + begin
                panels_at = address_of(panels) + first * panel_size * size
                if sizes.together > 0:
                    pack_tiles(weight, first_taps, panel_sizes, first, first + end - begin, 0, weight.shape[1], made)
                    check += nothing_of(made, 0, (end - begin) * panel_size)
                    panels_at = address_of(made)
                for row_tile in range(begin, end, group_tiles):
                    sum_tiles(
                        row_tile, min(group_tiles, end - row_tile), bias, sizes, phases, tiles, panel_sizes, terms,
                        panels_at + (row_tile - begin) * panel_size * size, block_at, block_offsets, strip_width,
                        strip_size, group, column, columns, own, output,
                    )  # fmt: skip
        infinite[worker] = check
    scratch[0] = nothing_of(infinite, 0, workers)
    take_gil(gil)


@helper
def sum_blocks(
    row_begin, row_end, group_tiles, bias, sizes, phases, tiles, panel_sizes, first_taps, terms, weight, block_at,
    block_offsets, group, column, columns, made, totals, scratch, output,
):  # fmt: skip
    """Compute the rows of a part of the tiles in few columns, by blocks of terms of which a few panels are made.

    So weights that are met once or twice are read in rows, and come back from no farther than the first-level cache.
    0, or NaN where a weight is not finite, of which a sum would tell.
    """
    size, rows, taps = output.itemsize, sizes.rows, panel_sizes.taps
    few = few_of(columns, sizes)
    whole = columns - few
    tall_size = group_tiles * rows * sizes.lanes if whole > 0 else 0
    group_size = tall_size + group_tiles * sizes.start_size * few_stored(few)
    first_tile = group * tiles_of(weight, first_taps, panel_sizes)
    check = output.dtype.type(0)
    for inner in range(0, weight.shape[1], sizes.block_channels):
        stop = min(inner + sizes.block_channels, weight.shape[1])
        own_terms = (stop - inner) * taps
        offsets = block_offsets + inner * taps * 8
        begins, ends = inner == 0, stop == weight.shape[1]
        for begin in range(row_begin, row_end, group_tiles):
            count = min(group_tiles, row_end - begin)
            pack_tiles(
                weight, first_taps, panel_sizes, first_tile + begin, first_tile + begin + count, inner, stop, made
            )  # fmt: skip
            made_size = count * own_terms * rows
            for j in range(made_size, made_size + sizes.start_size - rows):
                made[j] = 0
            if whole > 0 and ends:
                check += nothing_of(made, 0, made_size)
            own = totals[(begin - row_begin) // group_tiles * group_size :]
            for t in range(0, count if whole > 0 else 0, sizes.tall_tiles):
                sum_tall(
                    begin + t, min(sizes.tall_tiles, count - t), bias, sizes, phases, panel_sizes, own_terms,
                    address_of(made) + t * own_terms * rows * size, block_at, offsets, group, column, whole, begins,
                    ends, address_of(own) + t * rows * sizes.lanes * size, scratch, output,
                )  # fmt: skip
                if ends and not begins:  # the sums of all blocks but the last
                    check += nothing_of(own, t * rows * sizes.lanes, (t + sizes.tall_tiles) * rows * sizes.lanes)
            few_size = sizes.start_size * few_stored(few)
            for t in range(0, count if few > 0 else 0, sizes.few_tiles):
                own_few = own[tall_size + t * few_size :][: sizes.few_tiles * few_size]
                sum_few(
                    begin + t, min(sizes.few_tiles, count - t), bias, sizes, phases, tiles[tiles.size - 1], panel_sizes,
                    own_terms, address_of(made) + t * own_terms * rows * size, block_at + whole * size, offsets, group,
                    column + whole, few, begins, ends, own_few, scratch, output,
                )  # fmt: skip
                if ends and whole == 0:
                    check += nothing_of(own_few, 0, own_few.size)
    if check != 0:  # an input that is not finite, or a sum that overflows, tells the same
        check = output.dtype.type(0)
        for i in range(weight.shape[1]):
            for c in range(weight.shape[2]):
                for k in range(weight.shape[3]):
                    check += weight[group, i, c, k] * output.dtype.type(0)
    return check


@part
def few_of(columns, sizes):
    """Columns that are left to a tile of few."""
    few = columns % sizes.lanes
    return few if few <= sizes.few_columns else 0


@part
def few_stored(columns):
    """Columns that a tile of few stores for so many."""
    for count in COLUMNS:
        if columns <= count:
            return count if columns > 0 else 0
    return 0


@helper
def sum_tiles(
    first, count, bias, sizes, phases, tiles, panel_sizes, terms, panels_at, block_at, block_offsets, strip_width,
    strip_size, group, column, columns, scratch, output,
):  # fmt: skip
    """Compute the rows of a few tiles, from the `first` on, in all columns of a block.

    A few columns that no whole vector holds are computed of all of these at once, and so is a vector that is alone.
    """
    last = (columns - 1) // strip_width * strip_width
    few = few_of(columns - last, sizes)
    whole = columns - few
    sums_at, staging, _ = parts_of(scratch, sizes)
    if 0 < whole <= sizes.lanes and sizes.tall_tiles > 1 and terms > 0:
        for t in range(0, count, sizes.tall_tiles):
            sum_tall(
                first + t, min(sizes.tall_tiles, count - t), bias, sizes, phases, panel_sizes, terms,
                panels_at + t * terms * sizes.rows * output.itemsize, block_at, block_offsets, group, column, whole,
                True, True, sums_at, scratch, output,
            )  # fmt: skip
    elif whole > 0:
        for t in range(count):
            sum_row(
                first + t, bias, sizes, phases, tiles, panel_sizes, panel_sizes.tile_row, terms,
                panels_at + t * terms * sizes.rows * output.itemsize, block_at, block_offsets, strip_width, strip_size,
                group, column, whole, scratch, output,
            )  # fmt: skip
    if few > 0:
        at = block_at + last // strip_width * strip_size + (whole - last) * output.itemsize
        for t in range(0, count, sizes.few_tiles):
            sum_few(
                first + t, min(sizes.few_tiles, count - t), bias, sizes, phases, tiles[tiles.size - 1], panel_sizes,
                terms, panels_at + t * terms * sizes.rows * output.itemsize, at, block_offsets, group, column + whole,
                few, True, True, staging, scratch, output,
            )  # fmt: skip


@helper
def sum_row(
    row_tile, bias, sizes, phases, tiles, panel_sizes, tile_row, terms, panel_at, block_at, block_offsets, strip_width,
    strip_size, group, column, columns, scratch, output,
):  # fmt: skip
    """Compute the rows of a tile in whole vectors of columns."""
    lanes, rows = sizes.lanes, sizes.rows
    size = output.itemsize
    most = tiles.size - 1  # vectors of a tile
    full = most * lanes
    sums_at, staging, start = parts_of(scratch, sizes)
    start_at = address_of(start)
    channel, phase, channels = place_of(row_tile, sizes, phases, group)
    start_from(start, bias, sizes, channel, channels)
    begin = 0
    if sizes.row_sums != 0 and strip_width >= columns:
        whole = columns // full
        target = direct_target(sizes, phases, column, whole * full, channel, channels, rows, output)
        if target != 0:
            begin = whole * full
            for r in range(0, terms if whole > 0 else 0, sizes.block):
                call_tile(
                    tile_row, panel_at + r * rows * size, block_at, block_offsets + r * 8, min(sizes.block, terms - r),
                    whole, start_at if r == 0 else 0, sums_at, target if r + sizes.block >= terms else 0,
                    output.strides[1] // size,
                )  # fmt: skip
    for strip in range(0, columns, strip_width):
        strip_at = block_at + strip // strip_width * strip_size
        done, end = max(strip, begin), min(strip + strip_width, columns)
        while done < end:
            vectors = vectors_of(end - done, lanes, most)
            span = vectors * lanes
            target = direct_target(sizes, phases, column + done, span, channel, channels, rows, output)
            call_tile(
                tiles[vectors - 1], panel_at, strip_at + (done - strip) * size, block_offsets, terms, sizes.block,
                start_at, sums_at, target if target != 0 else address_of(staging),
                output.strides[1] // size if target != 0 else span * sizes.slots,
            )  # fmt: skip
            if target == 0:
                store_columns(
                    staging, sizes, phases, panel_sizes, column + done, min(span, end - done), span * sizes.slots,
                    sizes.slots, channel, channels, phase, output,
                )  # fmt: skip
            done += span


@part
def sum_tall(
    first, count, bias, sizes, phases, panel_sizes, terms, panels_at, block_at, block_offsets, group, column, columns,
    begins, ends, sums_at, scratch, output,
):  # fmt: skip
    """Compute the rows of a few tiles in one vector of columns: all, or what some terms add to the sums of others."""
    tiles, rows, size = sizes.tall_tiles, sizes.rows, output.itemsize
    _, staging, start = parts_of(scratch, sizes)
    if begins:
        start_tiles(start, rows, first, tiles, count, bias, sizes, phases, group)
    place_panels(scratch, panels_at, terms * rows * size, tiles, count)
    target = 0
    if ends and count == tiles and phases.size <= sizes.tile_phases:
        channel = first * sizes.tile_channels
        channels = min(tiles * sizes.tile_channels, sizes.row_channels - channel)
        channel += group * sizes.row_channels
        target = direct_target(sizes, phases, column, sizes.lanes, channel, channels, tiles * rows, output)
    channel_step = sizes.lanes * sizes.slots
    for r in range(0, terms, sizes.block):
        call_tile(
            panel_sizes.tall_tile, address_of(scratch), block_at, block_offsets + r * 8, min(sizes.block, terms - r), r,
            address_of(start) if begins and r == 0 else 0, sums_at,
            0 if not ends or r + sizes.block < terms else target if target != 0 else address_of(staging),
            output.strides[1] // size if target != 0 else channel_step,
        )  # fmt: skip
    if ends and target == 0:
        store_tiles(
            staging, sizes, phases, panel_sizes, column, columns, sizes.tile_channels * channel_step, channel_step,
            sizes.slots, first, count, group, output,
        )  # fmt: skip


@part
def sum_few(
    first, count, bias, sizes, phases, few_tile, panel_sizes, terms, panels_at, block_at, block_offsets, group, column,
    columns, begins, ends, staging, scratch, output,
):  # fmt: skip
    """Compute the rows of a few tiles in few columns: all, or what some terms add to the `staging` of others."""
    tiles, width, size = sizes.few_tiles, sizes.start_size, output.itemsize
    sums_at, _, start = parts_of(scratch, sizes)
    if begins:
        start_tiles(start, width, first, tiles, count, bias, sizes, phases, group)
    place_panels(scratch, panels_at, terms * sizes.rows * size, tiles, count)
    call_tile(
        few_tile, address_of(scratch), block_at, block_offsets, terms, sizes.block, address_of(start) if begins else 0,
        sums_at, address_of(staging), columns,
    )  # fmt: skip
    if ends:
        store_tiles(
            staging, sizes, phases, panel_sizes, column, columns, width, sizes.tile_phases, tiles * width, first, count,
            group, output,
        )  # fmt: skip


@part
def start_tiles(start, width, first, tiles, count, bias, sizes, phases, group):
    """What the rows of tiles start from, so far apart; the last of those that there are counts for those after it."""
    for t in range(tiles):
        channel, _, channels = place_of(first + min(t, count - 1), sizes, phases, group)
        start_from(start[t * width :], bias, sizes, channel, channels)


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
        store_columns(
            staging, sizes, phases, panel_sizes, column, columns, tile_step // sizes.tile_channels, column_step,
            channel + group * sizes.row_channels, channels, 0, output,
        )  # fmt: skip
        return
    for t in range(count):
        channel, phase, channels = place_of(first + t, sizes, phases, group)
        store_columns(
            staging[t * tile_step :], sizes, phases, panel_sizes, column, columns, channel_step, column_step, channel,
            channels, phase, output,
        )  # fmt: skip


@part
def parts_of(scratch, sizes):
    """A worker's scratch memory, after the addresses of panels: the address of sums; staging; what to start from."""
    sums = CACHE_LINE // scratch.itemsize
    start = scratch.size - sizes.starts
    return address_of(scratch[sums:]), scratch[sums + sizes.sums_size : start], scratch[start:]


@part
def place_panels(scratch, panels_at, panel_bytes, tiles, count):
    """Where so many tiles find their panels: the last of those that there are counts for those that are not."""
    for t in range(tiles):
        store_integer(address_of(scratch) + t * 8, panels_at + min(t, count - 1) * panel_bytes)


@part
def start_from(start, bias, sizes, channel, channels):
    """What the rows of a tile start from, negated as the tiles take it."""
    for c in range(sizes.tile_channels):
        value = -bias[channel + c] if c < channels and bias.size > 0 else start.dtype.type(0)
        for m in range(c * sizes.tile_phases, (c + 1) * sizes.tile_phases):
            start[m] = value


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
def direct_source(source, sizes, group, column, columns):
    """The address of a block's first sample where all that its tiles load lies inside an item; else 0."""
    if sizes.in_place == 0:
        return 0
    item = column // sizes.item_columns
    first = sizes.q_first + column - item * sizes.item_columns - sizes.crop_in
    end = first + -(-columns // sizes.lanes) * sizes.lanes + sizes.few_columns  # more than any tile loads
    if first - sizes.lead < 0 or end + sizes.tail > source.shape[2]:
        return 0
    channel = group * (source.shape[1] // sizes.groups)
    return address_of(source) + item * source.strides[0] + channel * source.strides[1] + first * source.itemsize


@helper
def vectors_of(columns, lanes, most):
    """Vectors of the next tile: full tiles, but what is left over is shared out with the last of them."""
    vectors = -(-columns // lanes)
    if most < vectors < 2 * most:
        return -(-vectors // 2)
    return min(vectors, most)


@part
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


@helper
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
                call_move(
                    lay_out, address_of(staging) + (c * channel_step + (j + first) * column_step) * staging.itemsize,
                    column_step, stop - first,
                    address_of(output) + item * output.strides[0] + (channel + c) * output.strides[1]
                    + l * output.itemsize,
                    step,
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
                         channels, target_at + (l + p) * output.itemsize, output.strides[1], count),
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
