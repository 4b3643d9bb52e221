"""The fast path of forward and grad_input on the CPU: a matrix product whose right-hand rows are shifted rows.

Both operations are, for a family of phases that share their shifts,

    target[o, q·step_out + phase - crop_out] = start[o] + Σ_r panel[r, (o, phase)] · row_r[q - shift_r],

where a term r is a (channel, tap) and row_r is a plane of the source: source[channel, q·step_in + plane - crop_in].
Forward has one plane a channel (step_in 1) and interleaves phases as it stores (step_out = stride); grad_input splits
the output gradient into planes (step_in = stride) and stores one phase. layout.py says which shifts and planes there
are, microkernels.py computes the tiles.

The columns of the product are the positions q of all items, one after another: item n has `lead` columns before its
first position and `tail` after its last, which hold what the shifts reach, or zero where the source has ended. So short
inputs share a vector, and a column that belongs to no position is computed and dropped.

Called by the engine with its scratch memory; nothing here allocates or checks. Each element is summed in one order that
depends on the layer alone.
"""

from numba import prange

from .compilation import helper, kernel
from .intrinsics import address_of, call_move, call_pack, call_tile, copy_bytes
from .layout import Sizes
from .rows import count_below, first_not_below, nothing_of

PACK_CHANNELS = 32  # term channels of a tile that are packed before the next tile's


@kernel("r3 r1 c1 n1 n1 n1 n1 n1 i i s i c2 c2 o2 w3", Sizes)
def product(
    source, bias, panels, term_rows, term_starts, planes, phases, tiles, lay_out, deinterleave, sizes, workers, slabs,
    scratch, offsets, output,
):  # fmt: skip
    """Workers share (group, block of columns, part of the rows) out evenly and pack a block of columns once.

    `tiles` are the addresses of the compiled tiles of 1, 2, .. vectors and of that of few columns; `lay_out` and
    `deinterleave` those of moves, or 0; `sizes` is a layout.Sizes. Scratch: slabs (workers, rows of a slab · pitch),
    scratch (workers, sums, staging and starts of a tile), offsets (2, terms) into a slab and into rows that are read
    where they are.
    """
    lanes, rows, tile_phases, groups, parts = sizes.lanes, sizes.rows, sizes.tile_phases, sizes.groups, sizes.parts
    group_rows = output.shape[1] // groups
    column_end = source.shape[0] * (sizes.lead + sizes.positions + sizes.tail) - sizes.tail
    blocks = -(-(column_end - sizes.lead) // sizes.width)
    tile_channels = rows // tile_phases
    phase_tiles = -(-phases.size // tile_phases)
    row_tiles = -(-group_rows // tile_channels) * phase_tiles
    size = panels.itemsize
    tasks = groups * blocks * parts
    most = tiles.size - 1  # vectors of a tile
    tile_size, start_size = rows * most * lanes, sizes.start_size
    terms = term_rows.size
    for r in range(terms):
        offsets[0, r] = term_rows[r] * sizes.pitch + term_starts[r]
        offsets[1, r] = term_rows[r] * (source.strides[1] // size) + term_starts[r] - sizes.lead
    for worker in prange(workers):
        packed = -1
        slab = slabs[worker]
        sums = scratch[worker]
        sums_at = address_of(sums)
        staging = sums[tile_size : sums.size - start_size]
        start = sums[sums.size - start_size :]
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            group, column = task // parts // blocks, sizes.lead + task // parts % blocks * sizes.width
            columns = min(sizes.width, column_end - column)
            block_at, block_offsets = address_of(slab), address_of(offsets)
            source_at = direct_source(source, sizes, group, column, columns)
            if source_at != 0:
                block_at, block_offsets = source_at, address_of(offsets[1])
            elif task // parts != packed:
                pack_slab(source, planes, sizes, deinterleave, group, column, columns, slab)
                packed = task // parts
            part = task % parts
            for row_tile in range(part * row_tiles // parts, (part + 1) * row_tiles // parts):
                channel = row_tile // phase_tiles * tile_channels  # of the group
                phase = row_tile % phase_tiles * tile_phases
                channels = min(tile_channels, group_rows - channel)
                channel += group * group_rows
                for m in range(rows):
                    c = m // tile_phases
                    start[m] = -bias[channel + c] if c < channels and bias.size > 0 else 0
                panel_at = address_of(panels) + (group * row_tiles + row_tile) * terms * rows * size
                done = 0
                while done < columns:
                    if columns - done <= sizes.few_columns:
                        call_tile(
                            tiles[most], panel_at, block_at + done * size, block_offsets, terms, sizes.block,
                            address_of(start), sums_at, address_of(staging), columns - done,
                        )  # fmt: skip
                        store_columns(
                            staging, sizes, phases, lay_out, column + done, columns - done, tile_phases, start_size,
                            channel, channels, phase, output,
                        )  # fmt: skip
                        break
                    vectors = vectors_of(columns - done, lanes, most, sizes.few_columns)
                    span = vectors * lanes
                    target = direct_target(sizes, phases, column + done, span, channel, channels, output)
                    call_tile(
                        tiles[vectors - 1], panel_at, block_at + done * size, block_offsets, terms,
                        sizes.block, address_of(start), sums_at, target if target != 0 else address_of(staging),
                        output.strides[1] // size if target != 0 else span * sizes.slots,
                    )  # fmt: skip
                    if target == 0:
                        kept = min(span, columns - done)
                        store_columns(
                            staging, sizes, phases, lay_out, column + done, kept, span * sizes.slots, sizes.slots,
                            channel, channels, phase, output,
                        )  # fmt: skip
                    done += span


@helper
def direct_source(source, sizes, group, column, columns):
    """The address of a block's first sample where all that its tiles load lies inside an item; else 0."""
    if sizes.in_place == 0:
        return 0
    item_columns = sizes.lead + sizes.positions + sizes.tail
    item = column // item_columns
    first = sizes.q_first + column - item * item_columns - sizes.lead - sizes.crop_in
    end = first + -(-columns // sizes.lanes) * sizes.lanes + sizes.few_columns  # more than any tile loads
    if first - sizes.lead < 0 or end + sizes.tail > source.shape[2]:
        return 0
    channel = group * (source.shape[1] // sizes.groups)
    return address_of(source) + item * source.strides[0] + channel * source.strides[1] + first * source.itemsize


@helper
def vectors_of(columns, lanes, most, few):
    """Vectors of the next tile: full tiles, but what is left over is shared out with the last of them.

    A few columns that no whole vector holds are left for the tile of few.
    """
    vectors = columns // lanes
    if vectors == 0 or columns - vectors * lanes > few:
        vectors = -(-columns // lanes)
    if most < vectors < 2 * most:
        return -(-vectors // 2)
    return min(vectors, most)


@helper
def direct_target(sizes, phases, column, span, channel, channels, output):
    """The address that a tile can be stored at as it is; 0 where it hangs over an edge or its samples lie apart."""
    step_out = sizes.step_out
    if sizes.slots != step_out or channels * sizes.tile_phases != sizes.rows:
        return 0
    if output.strides[2] != output.itemsize or output.strides[1] % output.itemsize != 0:
        return 0
    item_columns = sizes.lead + sizes.positions + sizes.tail
    item = column // item_columns
    position = column - item * item_columns - sizes.lead
    l = (sizes.q_first + position) * step_out + phases[0] - sizes.crop_out
    if position < 0 or position + span > sizes.positions or l < 0 or l + span * step_out > output.shape[2]:
        return 0
    return address_of(output) + item * output.strides[0] + channel * output.strides[1] + l * output.itemsize


@helper
def store_columns(
    staging, sizes, phases, lay_out, column, columns, channel_step, column_step, channel, channels, phase, output
):  # fmt: skip
    """Store what of a staged tile belongs to a sample that exists."""
    lead, tail, positions, step = sizes.lead, sizes.tail, sizes.positions, sizes.step_out
    own_phases = min(sizes.tile_phases, phases.size - phase)
    last_phase = phases[phase + own_phases - 1]
    neighbours = lay_out != 0 and own_phases == sizes.tile_phases and last_phase - phases[phase] == own_phases - 1
    neighbours = neighbours and output.strides[2] == output.itemsize
    item_columns = lead + positions + tail
    item = column // item_columns
    position = column - item * item_columns - lead
    j = 0
    while j < columns:  # an item's columns after the other's; those before and after its positions are no samples
        begin = min(max(-position, 0), columns - j)
        run = min(positions + tail - position, columns - j)
        end = max(min(positions - position, run), begin)
        q = sizes.q_first + position
        # the columns of which all phases lie in the output; at the others each is looked at
        first = min(max(begin, first_not_below(sizes.crop_out - phases[phase] - q * step, step)), end)
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
        for k in range(begin, end):
            if k < first or k >= stop:
                for p in range(own_phases):
                    l = (q + k) * step + phases[phase + p] - sizes.crop_out
                    if 0 <= l < output.shape[2]:
                        for c in range(channels):
                            output[item, channel + c, l] = staging[c * channel_step + (j + k) * column_step + p]
        j += run
        item += 1
        position = -lead


@helper
def pack_slab(source, planes, sizes, deinterleave, group, column, columns, slab):
    """Copy the planes of the group's channels into rows, from `lead` before the columns to `tail` after them."""
    lead, step_in, lanes = sizes.lead, sizes.step_in, sizes.lanes
    batch, _, length = source.shape
    channels = source.shape[1] // sizes.groups
    item_columns = lead + sizes.positions + sizes.tail
    width = min(lead + -(-columns // lanes) * lanes + sizes.tail, sizes.pitch)
    size = slab.itemsize
    contiguous = source.strides[2] == size
    every = contiguous and step_in > 1 and deinterleave != 0 and planes.size == step_in
    first_item = (column - lead) // item_columns
    first_at = (column - lead) % item_columns
    for c in range(channels):
        channel = group * channels + c
        item, at, done = first_item, first_at, 0
        while done < width:
            run = min(item_columns - at, width - done) if item < batch else width - done
            first = (sizes.q_first - lead + at) * step_in - sizes.crop_in  # the sample of plane 0 at the run's start
            source_at = address_of(source) + item * source.strides[0] + channel * source.strides[1]
            row_at = c * planes.size * sizes.pitch + done
            together, moved = 0, 0  # the positions of which a move parts all planes
            if every and item < batch:
                together = min(first_not_below(-first, step_in), run)
                moved = together + (count_below(length - first - step_in + 1, step_in, run) - together) // lanes * lanes
                if moved > together:
                    call_move(
                        deinterleave, source_at + (first + together * step_in) * size, step_in, moved - together,
                        address_of(slab) + (row_at + together) * size, sizes.pitch,
                    )  # fmt: skip
                moved = max(moved, together)
            for p in range(planes.size):
                row = slab[row_at + p * sizes.pitch : row_at + p * sizes.pitch + run]
                start = first + planes[p]
                begin = min(first_not_below(-start, step_in), run)
                stop = max(count_below(length - start, step_in, run), begin) if item < batch else begin
                row[:begin] = 0
                if contiguous and step_in == 1:
                    if stop > begin:
                        copy_bytes(
                            address_of(row) + begin * size, source_at + (start + begin) * size, (stop - begin) * size
                        )
                else:
                    for j in range(begin, min(together, stop)):
                        row[j] = source[item, channel, start + j * step_in]
                    for j in range(max(begin, moved), stop):
                        row[j] = source[item, channel, start + j * step_in]
                row[stop:] = 0
            done += run
            item += 1
            at = 0


@kernel("r4 n1 i i i i i i i i c1 c1")
def pack_panels(
    weight, first_taps, tap_step, family_taps, rows, tile_phases, together, pack, interleave, lanes, infinite, panels
):  # fmt: skip
    """Panels [group][tile][term][row] from weight[group, term channel, row channel, tap]; rows are padded with zero.

    So many tiles are filled `together`, a few term channels at a time, so that weights which lie side by side are read
    so. `pack` and `interleave` are the addresses of moves for tiles whose rows are runs of taps and for those whose
    terms lie in a row for each channel, or 0. `infinite` gets what is 0 for each tile whose weights are all finite, and
    NaN for the others.
    """
    groups, term_channels, row_channels, taps = weight.shape
    phases = first_taps.size
    tile_channels = rows // tile_phases
    phase_tiles = -(-phases // tile_phases)
    tiles = -(-row_channels // tile_channels) * phase_tiles
    size = term_channels * family_taps * rows
    bytes_each = panels.itemsize
    even = weight.strides[0] % bytes_each == 0 and weight.strides[1] % bytes_each == 0
    contiguous = weight.strides[3] == bytes_each and even and weight.strides[2] % bytes_each == 0
    in_rows = contiguous and weight.strides[1] == taps * bytes_each and family_taps == taps and interleave != 0
    for batch in prange(-(-groups * tiles // together)):
        begin, end = batch * together, min((batch + 1) * together, groups * tiles)
        for inner in range(0, term_channels, PACK_CHANNELS):
            inner_end = min(inner + PACK_CHANNELS, term_channels)
            for tile in range(begin, end):
                group = tile // tiles
                channel = tile % tiles // phase_tiles * tile_channels
                phase = tile % phase_tiles * tile_phases
                own_channels, own_phases = min(tile_channels, row_channels - channel), min(tile_phases, phases - phase)
                first_tap = first_taps[phase]
                whole = contiguous and own_channels == tile_channels and own_phases == tile_phases
                at = tile * size + inner * family_taps * rows
                source_at = address_of(weight) + group * weight.strides[0] + inner * weight.strides[1]
                source_at += channel * weight.strides[2] + first_tap * bytes_each
                if whole and in_rows:
                    count = (inner_end - inner) * taps // lanes * lanes
                    call_move(
                        interleave, source_at, weight.strides[2] // bytes_each, count,
                        address_of(panels) + at * bytes_each, rows,
                    )  # fmt: skip
                    for term in range(count, (inner_end - inner) * taps):
                        for c in range(rows):
                            i = inner + term // taps
                            panels[at + term * rows + c] = weight[group, i, channel + c, term % taps]
                elif whole and pack != 0 and first_taps[phase + tile_phases - 1] == first_tap + tile_phases - 1:
                    call_pack(
                        pack, source_at, weight.strides[1] // bytes_each, inner_end - inner,
                        weight.strides[2] // bytes_each, tap_step, family_taps, address_of(panels) + at * bytes_each,
                    )  # fmt: skip
                else:
                    for term in range((inner_end - inner) * family_taps):
                        i, m = inner + term // family_taps, term % family_taps
                        for row in range(rows):
                            c, p = row // tile_phases, row % tile_phases
                            value = panels.dtype.type(0)
                            if c < own_channels and p < own_phases:
                                value = weight[group, i, channel + c, first_taps[phase + p] + m * tap_step]
                            panels[at + term * rows + row] = value
        for tile in range(begin, end):
            infinite[tile] = nothing_of(panels[tile * size : (tile + 1) * size])
