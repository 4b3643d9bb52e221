"""Packing for the tiled product: a block of the source into a slab of rows, and weights into panels.

pack_slab is a part of tiled.product, and so is pack_tiles, where a call's own weight is packed as its tiles are met;
pack_panels is a kernel of its own, which panels.py calls once for a layer. Nothing here allocates or checks.
"""

from numba import prange

from .compilation import helper, kernel, task
from .intrinsics import address_of, call_rows, call_task, copy_bytes, record_of
from .layout import HEAD, PANEL_SIZES, SIZES
from .rows import ZERO, count_below, first_not_below, nothing_of

SHORT_ROW = 6  # vectors, up to which a row is copied faster than a function for any length is called
SHORT_PARTED = 2  # and up to which one is parted faster with what lies around it than by whole vectors and the rest
PACK_CHANNELS = 32  # term channels of a tile that are packed before the next tile's
PACK_TILES = 16  # that are packed along a row of weights that lie side by side
NEAR_TILES = 4  # likewise where panels lie so far apart that they take each other's place in the first-level cache,
NEAR_BYTES = 2 * 1024 * 1024  # and the weights come from the second-level one


@task("r3 n1 sizes panel_sizes i i i c1", sizes=SIZES, panel_sizes=PANEL_SIZES)
def pack_slab(source, planes, sizes, panel_sizes, group, column, columns, slab):
    """Copy the planes of the group's channels into strips, each with `lead` before its columns and `tail` after them.

    A strip holds all rows of its columns close together, so that a tile meets few pages of memory, one after the other.
    """
    lead, step_in, lanes, strip, pitch = sizes.lead, sizes.step_in, sizes.lanes, sizes.strip, sizes.pitch
    rows = source.shape[1] // sizes.groups * planes.size
    strips = -(-columns // strip)
    end = min(lead + -(-columns // lanes) * lanes + sizes.tail, (strips - 1) * strip + pitch)
    item, at, done = column // sizes.item_columns, column % sizes.item_columns, ZERO
    while done < end:  # an item's columns after the other's, counted from `lead` before the first
        run_end = min(done + sizes.item_columns - at, end) if item < source.shape[0] else end
        first = (sizes.q_first - lead + at - done) * step_in - sizes.crop_in  # the sample of plane 0 at column 0
        begin, end_of_run = first_not_below(done - pitch + 1, strip), min(-(-run_end // strip), strips)
        whole_begin, whole_end = whole_strips(source, planes, sizes, panel_sizes, item, first, done, run_end)
        s = begin
        while s < end_of_run:
            together = whole_end - s if whole_begin <= s < whole_end else 1
            pack_run(
                source, planes, sizes, panel_sizes, item, group, first, max(done, s * strip),
                min(run_end, s * strip + pitch), together, s * (rows * pitch - strip), slab,
            )  # fmt: skip
            s += together
        done = run_end
        item += 1
        at = 0


@helper
def whole_strips(source, planes, sizes, panel_sizes, item, first, begin, end):
    """Of the columns from `begin` to `end`, the strips all of whose samples are there, that a move takes together."""
    step_in, last = sizes.step_in, first + planes[planes.size - 1]
    if panel_sizes.part_strips == 0 or planes.size % step_in != 0:
        return 0, 0
    if item >= source.shape[0] or source.strides[2] != source.itemsize:
        return 0, 0
    inside = max(begin, first_not_below(-first - planes[0], step_in))
    inside_end = count_below(source.shape[2] - last, step_in, end)
    return first_not_below(inside, sizes.strip), (inside_end - sizes.pitch + sizes.strip) // sizes.strip


@helper
def pack_run(
    source, planes, sizes, panel_sizes, item, group, first, begin, end, strips, strip_at, slab
):  # fmt: skip
    """The planes of a group's channels at the columns from `begin` to `end` of a strip, of an item alone.

    Or of several strips, whose columns all are that item's, and of those samples that are there.
    """
    step_in, lanes, size, length, pitch = sizes.step_in, sizes.lanes, slab.itemsize, source.shape[2], sizes.pitch
    channels = source.shape[1] // sizes.groups
    channel = group * channels
    contiguous = source.strides[2] == size
    there = item < source.shape[0]  # after the last item come zeros
    source_at = address_of(source) + item * source.strides[0] + channel * source.strides[1]
    short = SHORT_ROW if step_in == 1 else SHORT_PARTED
    row_size = planes.size * pitch * size
    for p in range(0, planes.size, step_in):  # those of a period of the step lie side by side
        together = contiguous and p + step_in <= planes.size
        start = first + planes[p]  # the sample at column 0
        if together and strips == 1 and panel_sizes.part_rows != 0 and end - begin <= short * lanes:
            sample = start + begin * step_in
            to = address_of(slab) + (strip_at + p * pitch + begin) * size
            call_rows(
                panel_sizes.part_rows,
                (source_at + sample * size, source.strides[1], -sample, length - sample if there else -sample, channels,
                 to, row_size, pitch * size, end - begin),
            )  # fmt: skip
            continue
        moved, moved_end = begin, begin  # the columns of which a move parts all planes
        # a strip of a single plane alone is copied as it is
        if together and there and panel_sizes.part_strips != 0 and (step_in > 1 or strips > 1):
            moved = max(begin, first_not_below(-start, step_in))
            moved_end = count_below(length - start - step_in + 1, step_in, end)
            if moved_end - moved < lanes:
                moved, moved_end = begin, begin
            else:
                call_rows(
                    panel_sizes.part_strips,
                    (source_at + (start + moved * step_in) * size, source.strides[1], channels, strips,
                     sizes.strip * step_in * size, address_of(slab) + (strip_at + p * pitch + moved) * size, row_size,
                     pitch * size, channels * row_size, moved_end - moved),
                )  # fmt: skip
            if moved == begin and moved_end == end:
                continue
        for own in range(p, min(p + step_in, planes.size)):
            pack_plane(
                source, sizes, item, channel, channels, first + planes[own], begin, end, moved,
                moved_end, there, strip_at + own * pitch, planes.size * pitch, slab,
            )  # fmt: skip


@helper
def pack_plane(
    source, sizes, item, channel, channels, start, begin, end, moved, moved_end, there, at, channel_step, slab
):  # fmt: skip
    """A plane of some channels at the columns from `begin` to `end`, but for those that a move has parted."""
    step_in, size = sizes.step_in, slab.itemsize
    existing = min(max(begin, first_not_below(-start, step_in)), end)
    stop = max(count_below(source.shape[2] - start, step_in, end), existing) if there else existing
    for c in range(channels):
        own = at + c * channel_step
        for j in range(begin, existing):
            slab[own + j] = 0
        if step_in == 1 and source.strides[2] == size:
            source_at = address_of(source) + item * source.strides[0] + (channel + c) * source.strides[1]
            copy_bytes(
                address_of(slab) + (own + existing) * size, source_at + (start + existing) * size,
                (stop - existing) * size,
            )  # fmt: skip
        else:
            for j in range(existing, min(moved, stop)):
                slab[own + j] = source[item, channel + c, start + j * step_in]
            for j in range(max(existing, moved_end), stop):
                slab[own + j] = source[item, channel + c, start + j * step_in]
        for j in range(stop, end):
            slab[own + j] = 0


@helper
def lists_of(numbers, sizes):
    """The lists that follow a layout.PanelSizes in its array."""
    tiles = HEAD + sizes.tile_count
    rows, starts = tiles + sizes.terms, tiles + 2 * sizes.terms
    planes = starts + sizes.plane_count
    phases, first_taps = planes + sizes.phase_count, planes + 2 * sizes.phase_count
    return (
        numbers[HEAD:tiles], numbers[tiles:rows], numbers[rows:starts], numbers[starts:planes], numbers[planes:phases],
        numbers[phases:first_taps],
    )  # fmt: skip


@kernel("r4 n1 i i i c1 c1")
def pack_panels(weight, panel_numbers, together, batches, task_at, infinite, panels):
    """Panels [group][tile][term][row] from weight[group, term channel, row channel, tap]; rows are padded with zero.

    So many tiles are filled `together`; `panel_numbers` are a layout.PanelSizes and its lists. `infinite` gets what is
    0 for tiles whose weights are all finite, and NaN for others: an element for so many tiles.
    """
    for batch in prange(batches):
        call_task(task_at, (weight, panel_numbers, together, batch, infinite, panels))


@task("r4 n1 i i c1 c1")
def pack_batch(weight, panel_numbers, together, batch, infinite, panels):
    """The panels of the tiles that are filled together."""
    sizes = record_of(panel_numbers, PANEL_SIZES)
    first_taps = lists_of(panel_numbers, sizes)[5]
    tiles = weight.shape[0] * tiles_of(weight, first_taps, sizes)
    size = weight.shape[1] * sizes.taps * sizes.rows
    begin, end = batch * together, min((batch + 1) * together, tiles)
    own = panels[begin * size : end * size]
    call_task(sizes.pack_tiles, (weight, first_taps, sizes, begin, end, 0, weight.shape[1], own))
    infinite[batch] = nothing_of(own, 0, own.size)


@helper
def tiles_of(weight, first_taps, sizes):
    """Tiles of a group."""
    return -(-weight.shape[2] // (sizes.rows // sizes.tile_phases)) * -(-first_taps.size // sizes.tile_phases)


@helper
def side_by_side(weight, sizes, bytes_each):
    """Tiles of a group, from the first on, whose weights of a channel lie side by side."""
    taps = weight.shape[3]
    if sizes.pack_whole == 0 or taps != sizes.taps * sizes.tile_phases or weight.strides[3] != bytes_each:
        return 0
    if weight.strides[2] != taps * bytes_each or weight.strides[1] % bytes_each or weight.strides[0] % bytes_each:
        return 0
    return weight.shape[2] // (sizes.rows // sizes.tile_phases)


@task("r4 n1 panel_sizes i i i i c1", panel_sizes=PANEL_SIZES)
def pack_tiles(weight, first_taps, sizes, begin, end, inner_begin, inner_stop, panels):
    """Fill the panels of the tiles from `begin` to `end` with the terms of some channels.

    A few term channels at a time, of all of these tiles, so that weights which lie side by side are read so.
    """
    lanes, rows, tile_phases, family_taps = sizes.lanes, sizes.rows, sizes.tile_phases, sizes.taps
    term_channels = inner_stop - inner_begin
    row_channels, taps = weight.shape[2:]
    tile_channels, phase_tiles = rows // tile_phases, -(-first_taps.size // tile_phases)
    tiles = tiles_of(weight, first_taps, sizes)
    bytes_each = panels.itemsize
    even = weight.strides[0] % bytes_each == 0 and weight.strides[1] % bytes_each == 0
    contiguous = weight.strides[3] == bytes_each and even and weight.strides[2] % bytes_each == 0
    in_rows = contiguous and weight.strides[1] == taps * bytes_each and family_taps == taps and sizes.interleave != 0
    whole_tiles = side_by_side(weight, sizes, bytes_each)
    near = weight.size * bytes_each <= NEAR_BYTES and term_channels > PACK_CHANNELS
    most = NEAR_TILES if near else PACK_TILES
    for inner in range(inner_begin, inner_stop, PACK_CHANNELS):
        inner_end = min(inner + PACK_CHANNELS, inner_stop)
        group, place = begin // tiles, begin % tiles
        tile = begin
        while tile < end:
            channel, phase = place, 0
            if phase_tiles > 1:
                channel, phase = place // phase_tiles, place % phase_tiles * tile_phases
            channel *= tile_channels
            own_channels, own_phases = min(tile_channels, row_channels - channel), first_taps.size - phase
            first_tap = first_taps[phase]
            whole = contiguous and own_channels == tile_channels and own_phases >= tile_phases
            at = ((tile - begin) * term_channels + inner - inner_begin) * family_taps * rows
            source_at = address_of(weight) + group * weight.strides[0] + inner * weight.strides[1]
            source_at += channel * weight.strides[2] + first_tap * bytes_each
            together = 1
            if place < whole_tiles:
                together = min(whole_tiles - place, end - tile, most)
                call_task(
                    sizes.pack_whole,
                    (source_at, weight.strides[1] // bytes_each, inner_end - inner,
                     tile_channels * taps, together, term_channels * family_taps * rows,
                     address_of(panels) + at * bytes_each),
                )  # fmt: skip
            elif whole and in_rows:
                count = (inner_end - inner) * taps // lanes * lanes
                call_task(
                    sizes.interleave,
                    (source_at, weight.strides[2] // bytes_each, count,
                     address_of(panels) + at * bytes_each, rows),
                )  # fmt: skip
                for term in range(count, (inner_end - inner) * taps):
                    for c in range(rows):
                        i = inner + term // taps
                        panels[at + term * rows + c] = weight[group, i, channel + c, term % taps]
            elif whole and sizes.pack != 0 and first_taps[phase + tile_phases - 1] == first_tap + tile_phases - 1:
                alike = row_channels // tile_channels - place
                tile_step = tile_channels * weight.strides[2] // bytes_each
                if phase_tiles > 1:  # of a channel
                    alike, tile_step = own_phases // tile_phases, tile_phases
                    if first_taps[phase + alike * tile_phases - 1] != first_tap + alike * tile_phases - 1:
                        alike = 1
                together = min(alike, end - tile, most)
                call_rows(
                    sizes.pack,
                    (source_at, weight.strides[1] // bytes_each, inner_end - inner, tile_step, together,
                     term_channels * family_taps * rows, weight.strides[2] // bytes_each, sizes.tap_step, family_taps,
                     address_of(panels) + at * bytes_each),
                )  # fmt: skip
            else:
                for term in range((inner_end - inner) * family_taps):
                    i, m = inner + term // family_taps, term % family_taps
                    for row in range(rows):
                        c, p = row // tile_phases, row % tile_phases
                        value = panels.dtype.type(0)
                        if c < own_channels and p < own_phases:
                            value = weight[group, i, channel + c, first_taps[phase + p] + m * sizes.tap_step]
                        panels[at + term * rows + row] = value
            tile += together
            place += together
            if place == tiles:
                group, place = group + 1, 0
