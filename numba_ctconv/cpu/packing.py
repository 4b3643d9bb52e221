"""Packing for the tiled product: a block of the source into a slab of rows, and weights into panels.

pack_slab is a part of tiled.product; pack_panels is a kernel of its own, which panels.py calls once for a layer, or for
a call. Nothing here allocates or checks.
"""

from numba import prange

from .compilation import helper, kernel
from .intrinsics import address_of, call_move, call_pack, copy_bytes
from .rows import count_below, first_not_below, nothing_of

PACK_CHANNELS = 32  # term channels of a tile that are packed before the next tile's


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
