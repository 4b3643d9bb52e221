"""What the tiled product computes of a few neighbouring tiles: row by row, in one vector of columns, or in few columns.

Part of tiled.product. A worker's scratch memory holds, in this order: addresses of panels, sums of a tile or of a row
of tiles, staging, and what tiles start from.
"""

from .asking import asked_by
from .column_tiles import COLUMNS, VECTORS
from .compilation import helper, part
from .intrinsics import address_of, call_rows, call_task, store_integer
from .packing import side_by_side
from .storing import direct_target, place_of, store_tiles
from .target import CACHE_LINE, SUMS_BYTES


@part
def tiles_across(columns, tiles, sizes):
    """Full tiles that so many columns take."""
    return -(-columns // (tiles.size * sizes.lanes))


@helper
def sum_tiles(
    first, count, bias, sizes, phases, tiles, panel_sizes, term_starts, panels_at, block_at, block_offsets, strip_width,
    strip_size, group, column, columns, asked, number, scratch, output,
):  # fmt: skip
    """Compute the rows of a few tiles, from the `first` on, in all columns of a block; `number` tiles came before.

    A few columns that no whole vector holds are computed of all of these at once, and so is a vector that is alone.
    """
    terms = term_starts.size
    panel_bytes = terms * sizes.rows * output.itemsize
    if sizes.far_columns > 0:
        for t in range(count):
            call_task(
                panel_sizes.sum_far,
                (first + t, bias, sizes, phases, panel_sizes, term_starts, panels_at + t * panel_bytes, block_at,
                 block_offsets, strip_width, strip_size, group, column, columns, scratch, output),
            )  # fmt: skip
        return
    last = (columns - 1) // strip_width * strip_width
    few = few_of(columns - last, sizes)
    whole = columns - few
    sums_at, staging, _ = parts_of(scratch, sizes)
    if 0 < whole <= sizes.lanes and sizes.tall_tiles > 1 and terms > 0:
        for t in range(0, count, sizes.tall_tiles):
            sum_tall(
                first + t, min(sizes.tall_tiles, count - t), bias, sizes, phases, panel_sizes, terms,
                panels_at + t * panel_bytes, block_at, block_offsets, group, column, whole, True, True, sums_at,
                scratch, output,
            )  # fmt: skip
    elif whole > 0:
        for t in range(count):
            sum_row(
                first + t, bias, sizes, phases, tiles, panel_sizes, term_starts, panels_at + t * panel_bytes, block_at,
                block_offsets, strip_width, strip_size, group, column, whole, asked,
                number + t * tiles_across(columns, tiles, sizes), scratch, output,
            )  # fmt: skip
    if few > 0:
        at = block_at + last // strip_width * strip_size + (whole - last) * output.itemsize
        for t in range(0, count, sizes.few_tiles):
            sum_few(
                first + t, min(sizes.few_tiles, count - t), bias, sizes, phases, panel_sizes, terms,
                panels_at + t * panel_bytes, at, block_offsets, group, column + whole, few, True, True, staging,
                scratch, output,
            )  # fmt: skip


@helper
def sum_row(
    row_tile, bias, sizes, phases, tiles, panel_sizes, term_starts, panel_at, block_at, block_offsets, strip_width,
    strip_size, group, column, columns, asked, number, scratch, output,
):  # fmt: skip
    """Compute the rows of a tile in whole vectors of columns."""
    lanes, rows, terms = sizes.lanes, sizes.rows, term_starts.size
    size = output.itemsize
    most = tiles.size  # vectors of a tile
    full = most * lanes
    sums_at, staging, start = parts_of(scratch, sizes)
    start_at = address_of(start)
    channel, phase, channels = place_of(row_tile, sizes, phases, group)
    start_from(start, bias, sizes, channel, channels)
    for strip in range(0, columns, strip_width):
        strip_at = block_at + strip // strip_width * strip_size
        done, end = strip, min(strip + strip_width, columns)
        while sizes.row_sums != 0 and strip_width >= columns and end - done >= full:
            tiles_of_row = (end - done) // full
            span = tiles_of_row * full
            target = direct_target(sizes, phases, column + done, span, channel, channels, rows, output)
            if target == 0:
                break
            for r in range(0, terms, sizes.block):
                stop = min(r + sizes.block, terms)
                call_task(
                    panel_sizes.tile_row,
                    (panel_at + r * rows * size, strip_at + (done - strip) * size,
                     block_offsets + r * 8, stop - r, tiles_of_row, start_at if r == 0 else 0, sums_at,
                     target if stop == terms else 0, output.strides[1] // size),
                )  # fmt: skip
            done += span
        while done < end:
            vectors = vectors_of(end - done, lanes, most)
            span = vectors * lanes
            target = direct_target(sizes, phases, column + done, span, channel, channels, rows, output)
            call_task(
                tiles[vectors - 1],
                (panel_at, strip_at + (done - strip) * size, block_offsets, terms, sizes.block,
                 start_at, sums_at, target if target != 0 else address_of(staging),
                 output.strides[1] // size if target != 0 else span * sizes.slots,
                 asked_by(number + done // full, asked)),
            )  # fmt: skip
            if target == 0:
                call_task(
                    panel_sizes.store_columns,
                    (staging, sizes, phases, panel_sizes, column + done, min(span, end - done), span * sizes.slots,
                     sizes.slots, channel, channels, phase, output),
                )  # fmt: skip
            done += span


@helper
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
        call_task(
            panel_sizes.tall_tile,
            (address_of(scratch), block_at, block_offsets + r * 8, min(sizes.block, terms - r), r,
             address_of(start) if begins and r == 0 else 0, sums_at,
             0 if not ends or r + sizes.block < terms else target if target != 0 else address_of(staging),
             output.strides[1] // size if target != 0 else channel_step),
        )  # fmt: skip
    if ends and target == 0:
        store_tiles(
            staging, sizes, phases, panel_sizes, column, columns, sizes.tile_channels * channel_step, channel_step,
            sizes.slots, first, count, group, output,
        )  # fmt: skip


@helper
def sum_few(
    first, count, bias, sizes, phases, panel_sizes, terms, panels_at, block_at, block_offsets, group, column,
    columns, begins, ends, staging, scratch, output,
):  # fmt: skip
    """Compute the rows of a few tiles in few columns: all, or what some terms add to the `staging` of others."""
    tiles, width, size = sizes.few_tiles, sizes.start_size, output.itemsize
    start = parts_of(scratch, sizes)[2]
    if begins:
        start_tiles(start, width, first, tiles, count, bias, sizes, phases, group)
    place_panels(scratch, panels_at, terms * sizes.rows * size, tiles, count)
    call_task(
        panel_sizes.few_tile,
        (address_of(scratch), block_at, block_offsets, terms, sizes.block,
         address_of(start) if begins else 0, count, address_of(staging),
         columns if sizes.few_paired == 0 else -columns),
    )  # fmt: skip
    if ends:
        store_tiles(
            staging, sizes, phases, panel_sizes, column, columns, width, sizes.tile_phases, tiles * width, first, count,
            group, output,
        )  # fmt: skip


@helper
def sum_unpacked(
    row_begin, row_end, bias, sizes, phases, panel_sizes, weight, block_at, block_offsets, group, column, columns,
    made, scratch, output,
):  # fmt: skip
    """Compute in few columns those tiles of a part whose weights can be read where they are.

    How many, from its first on; and 0, or NaN where a weight is not finite, or a sum.
    """
    check = output.dtype.type(0)
    if sizes.unpacked == 0 or columns > sizes.unpacked_columns:
        return 0, check
    size, stored = output.itemsize, few_stored(columns)
    tiles = min(side_by_side(weight, panel_sizes, size), row_end) - row_begin
    tiles = max(tiles // sizes.few_tiles * sizes.few_tiles, 0)
    tile_size = sizes.start_size * stored
    most = max(min(2 * SUMS_BYTES // size, made.size // 2) // tile_size // sizes.few_tiles, 1) * sizes.few_tiles
    for begin in range(row_begin, row_begin + tiles, most):
        count = min(most, row_begin + tiles - begin)
        channel = begin * sizes.tile_channels
        bias_at = address_of(bias) + (group * sizes.row_channels + channel) * bias.strides[0]
        call_rows(
            sizes.unpacked,
            (address_of(weight) + group * weight.strides[0] + channel * weight.strides[2], weight.strides[1] // size,
             weight.shape[1], count // sizes.few_tiles * VECTORS, block_at, block_offsets, stored, columns,
             bias_at if bias.size > 0 else 0, bias.strides[0], address_of(made), address_of(made[count * tile_size :]),
             address_of(scratch)),
        )  # fmt: skip
        check += scratch[0]
        store_tiles(
            made, sizes, phases, panel_sizes, column, columns, sizes.start_size, sizes.tile_phases,
            count * sizes.start_size, begin, count, group, output,
        )  # fmt: skip
    return tiles, check


@part
def few_of(columns, sizes):
    """Columns that are left to a tile of few; with one that would follow a vector alone, so is that."""
    few = columns % sizes.lanes
    if columns == sizes.lanes + 1 and columns <= COLUMNS[-1]:
        return columns
    return few if few <= sizes.few_columns else 0


@part
def few_stored(columns):
    """Columns that a tile of few stores for so many."""
    for count in COLUMNS:
        if columns <= count:
            return count if columns > 0 else 0
    return 0


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
def start_tiles(start, width, first, tiles, count, bias, sizes, phases, group):
    """What the rows of tiles start from, so far apart; the last of those that there are counts for those after it."""
    for t in range(tiles):
        channel, _, channels = place_of(first + min(t, count - 1), sizes, phases, group)
        start_from(start[t * width :], bias, sizes, channel, channels)


@part
def start_from(start, bias, sizes, channel, channels):
    """What the rows of a tile start from, negated as the tiles take it, and never -0, to which -0 would add up to -0.

    Whether products that are too small to be held add up to 0 or to -0 depends on what zeros are met beside them.
    """
    nothing = start.dtype.type(0)
    for c in range(sizes.tile_channels):
        value = bias[channel + c] if c < channels and bias.size > 0 else nothing
        for m in range(c * sizes.tile_phases, (c + 1) * sizes.tile_phases):
            start[m] = -(value + nothing)


@helper
def vectors_of(columns, lanes, most):
    """Vectors of the next tile: full tiles, but what is left over is shared out with the last of them."""
    vectors = -(-columns // lanes)
    if most < vectors < 2 * most:
        return -(-vectors // 2)
    return min(vectors, most)
