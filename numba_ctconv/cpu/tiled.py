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

from typing import NamedTuple

from numba import prange

from .asking import asked_by_last, list_samples
from .compilation import helper, kernel, task
from .intrinsics import address_of, borrowed, call_task, record_of, release_gil, store_integer, take_gil
from .layout import PANEL_SIZES, SIZES
from .packing import lists_of, tiles_of
from .rows import ZERO, nothing_of, share_of, to_line
from .tile_sums import few_of, few_stored, sum_few, sum_tall, sum_tiles, sum_unpacked, tiles_across


@kernel("r3 r1 c1 n1 n1 i r4 c1 w3", nogil=False)
def product(source, bias, panels, panel_numbers, numbers, workers, weight, scratch, output):
    """Workers share the rows of all blocks of columns out evenly, and each packs a block once.

    `numbers` are a layout.Sizes, `panel_numbers` a layout.PanelSizes and its lists. Scratch, one after the other:
    offsets (2, terms) of int64, into a slab and into rows that are read where they are; memory of each worker's own, as
    scratch_of parts it; an element a worker; and the panels that each makes, in place of `panels`. In the end its first
    element is NaN where a weight was packed that is not finite, else 0.
    """
    sizes, panel_sizes = record_of(numbers, SIZES), record_of(panel_numbers, PANEL_SIZES)
    term_rows, term_starts = lists_of(panel_numbers, panel_sizes)[1:3]
    gil = release_gil(sizes.long)
    size, terms = scratch.itemsize, term_rows.size
    offsets_at = address_of(scratch)
    for r in range(terms):
        store_integer(offsets_at + r * 8, term_rows[r] * sizes.pitch + term_starts[r])
    row_step = source.strides[1] // size
    for r in range(terms if sizes.in_place != 0 else 0):
        store_integer(offsets_at + (terms + r) * 8, term_rows[r] * row_step + term_starts[r] - sizes.lead)
    task_at = sizes.task
    for worker in prange(workers):
        call_task(
            task_at, (source, bias, panels, panel_numbers, numbers, workers, worker, weight, scratch, output)
        )  # fmt: skip
    begin = 2 * terms * 8 // size + workers * sizes.own_size
    scratch[0] = nothing_of(scratch, begin, begin + workers)
    take_gil(gil)


@task("r3 r1 c1 n1 n1 i i r4 c1 w3")
def share(source, bias, panels, panel_numbers, numbers, workers, worker, weight, scratch, output):
    """A worker's rows, by panels that are there or that it makes of some tiles together."""
    source, bias, panels, weight = borrowed(source), borrowed(bias), borrowed(panels), borrowed(weight)
    scratch, output, panel_numbers = borrowed(scratch), borrowed(output), borrowed(panel_numbers)
    sizes, panel_sizes = record_of(numbers, SIZES), record_of(panel_numbers, PANEL_SIZES)
    tiles, term_rows, term_starts, planes, phases, first_taps = lists_of(panel_numbers, panel_sizes)
    size, terms = panels.itemsize, term_rows.size
    row_tiles = tiles_of(weight, first_taps, panel_sizes)
    cut = cut_of(source, sizes, row_tiles, workers)
    panel_size = terms * sizes.rows
    strip_size = source.shape[1] // sizes.groups * planes.size * sizes.pitch * size
    slab, _, own, made, list_at = scratch_of(scratch, sizes, terms, workers, worker)
    check = scratch.dtype.type(0)
    work = ZERO
    for block in range(cut.blocks):
        group, column, columns = columns_of(block, cut, sizes)
        row_begin, row_end, work = rows_of(columns, row_tiles, work, cut, sizes, worker, workers)
        if row_begin == row_end:
            continue
        block_at, block_offsets, strip_width = block_of(
            source, planes, sizes, panel_sizes, group, column, columns, terms, slab, scratch
        )
        across = tiles_across(columns, tiles, sizes)
        asked = asked_of(source, planes, sizes, terms, block + 1, cut, (row_end - row_begin) * across, list_at)
        together = sizes.together if sizes.together > 0 else max(1, row_end - row_begin)
        for begin in range(row_begin, row_end, together):
            end, first = min(begin + together, row_end), group * row_tiles + begin
            panels_at = address_of(panels) + first * panel_size * size
            if sizes.together > 0:
                call_task(
                    panel_sizes.pack_tiles,
                    (weight, first_taps, panel_sizes, first, first + end - begin, 0, weight.shape[1], made),
                )  # fmt: skip
                check += nothing_of(made, 0, (end - begin) * panel_size)
                panels_at = address_of(made)
            for row_tile in range(begin, end, sizes.group_tiles):
                sum_tiles(
                    row_tile, min(sizes.group_tiles, end - row_tile), bias, sizes, phases, tiles, panel_sizes,
                    term_starts, panels_at + (row_tile - begin) * panel_size * size, block_at, block_offsets,
                    strip_width, strip_size, group, column, columns, asked, (row_tile - row_begin) * across, own,
                    output,
                )  # fmt: skip
    keep_check(check, scratch, sizes, terms, workers, worker)


@task("r3 r1 c1 n1 n1 i i r4 c1 w3")
def share_by_blocks(source, bias, panels, panel_numbers, numbers, workers, worker, weight, scratch, output):
    """A worker's rows where columns are few, by panels of a few channels that it makes in turn."""
    source, bias, weight = borrowed(source), borrowed(bias), borrowed(weight)
    scratch, output, panel_numbers = borrowed(scratch), borrowed(output), borrowed(panel_numbers)
    sizes, panel_sizes = record_of(numbers, SIZES), record_of(panel_numbers, PANEL_SIZES)
    _, term_rows, _, planes, phases, first_taps = lists_of(panel_numbers, panel_sizes)
    terms = term_rows.size
    row_tiles = tiles_of(weight, first_taps, panel_sizes)
    cut = cut_of(source, sizes, row_tiles, workers)
    slab, totals, own, made, _ = scratch_of(scratch, sizes, terms, workers, worker)
    for j in range(own.size - sizes.starts, own.size):  # also of the rows that no tile has, of which a sum would tell
        own[j] = 0
    check = scratch.dtype.type(0)
    work = ZERO
    for block in range(cut.blocks):
        group, column, columns = columns_of(block, cut, sizes)
        row_begin, row_end, work = rows_of(columns, row_tiles, work, cut, sizes, worker, workers)
        if row_begin == row_end:
            continue
        block_at, block_offsets, _ = block_of(
            source, planes, sizes, panel_sizes, group, column, columns, terms, slab, scratch
        )
        unpacked, found = sum_unpacked(
            row_begin, row_end, bias, sizes, phases, panel_sizes, weight, block_at, block_offsets, group, column,
            columns, made, own, output,
        )  # fmt: skip
        if row_begin + unpacked < row_end:
            call_task(
                sizes.sum_blocks,
                (row_begin + unpacked, row_end, bias, sizes, phases, panel_sizes, first_taps, weight, block_at,
                 block_offsets, group, column, columns, made, totals, own, output),
            )  # fmt: skip
            found += totals[0]
        if found != 0:  # an input that is not finite, or a sum that overflows, tells the same
            check = nothing_of_group(weight, group, check)
    keep_check(check, scratch, sizes, terms, workers, worker)


class Cut(NamedTuple):
    """How a call is cut into blocks of columns, one after the other, whose rows workers share out."""

    span: int  # columns that are cut into blocks: all, or those of an item
    spans: int
    each: int  # blocks of a span
    blocks: int  # of all spans and groups
    unit: int  # of tiles that are shared out
    units: int  # of a block
    work: int  # of all blocks, for several workers: vectors of columns times units


@helper
def cut_of(source, sizes, row_tiles, workers):
    """How a call is cut whose groups have so many tiles."""
    span, spans = (source.shape[0] - 1) * sizes.item_columns + sizes.positions, ZERO + 1
    each = -(-span // sizes.width)
    if sizes.inner_end > 0:
        span, spans = sizes.positions, source.shape[0]
        each = 2 + -(-(sizes.inner_end - sizes.inner_begin) // sizes.width)
    unit = sizes.group_tiles if span <= sizes.lanes + sizes.few_columns else 1
    cut = Cut(span, spans, each, sizes.groups * spans * each, unit, -(-row_tiles // unit), ZERO)
    vectors = ZERO
    for block in range(each if workers > 1 else ZERO):
        vectors += -(-columns_of(block, cut, sizes)[2] // sizes.lanes)
    return Cut(span, spans, each, cut.blocks, unit, cut.units, sizes.groups * spans * vectors * cut.units)


@helper
def columns_of(block, cut, sizes):
    """The group of a block, its first column and how many it has."""
    group, item, block = block // cut.each // cut.spans, block // cut.each % cut.spans, block % cut.each
    column, end = block * sizes.width, min((block + 1) * sizes.width, cut.span)
    if sizes.inner_end > 0:
        inner = sizes.inner_begin + (block - 1) * sizes.width
        column = max(min(inner, sizes.inner_end), ZERO) if block > 0 else ZERO
        end = min(inner + sizes.width, sizes.inner_end) if block < cut.each - 1 else cut.span
    return group, item * sizes.item_columns + column, end - column


@helper
def asked_of(source, planes, sizes, terms, block, cut, tiles, list_at):
    """What the last of so many tiles ask for, of a later block: the samples of the item where it begins."""
    count = ZERO
    if sizes.list_size > 0 and block < cut.blocks:
        group, column, columns = columns_of(block, cut, sizes)
        item, at = column // sizes.item_columns, column % sizes.item_columns
        first = (sizes.q_first - sizes.lead + at) * sizes.step_in - sizes.crop_in + planes[0]
        channels = source.shape[1] // sizes.groups
        count = list_samples(
            list_at, count, source, item, group * channels, channels, first, first + columns * sizes.step_in
        )  # fmt: skip
    return asked_by_last(list_at, count, tiles, -(-terms // sizes.block))


@helper
def rows_of(columns, row_tiles, work, cut, sizes, worker, workers):
    """The tiles of a block of so many columns that are a worker's, from one up to another, and the work so far."""
    begin, end, work = share_of(cut.units, -(-columns // sizes.lanes), work, cut.work, worker, workers)
    return min(begin * cut.unit, row_tiles), min(end * cut.unit, row_tiles), work


@helper
def scratch_of(scratch, sizes, terms, workers, worker):
    """A worker's slab, sums of all tiles of a part, other memory, panels that it makes; and where its list lies."""
    room = scratch[2 * terms * 8 // scratch.itemsize :]
    slab = room[worker * sizes.own_size :][: sizes.slab_size]
    own = room[worker * sizes.own_size :][sizes.slab_size : sizes.own_size]
    totals, own = own[: sizes.totals_size], own[sizes.totals_size :]
    made = room[workers * (sizes.own_size + 1) + worker * sizes.made_size :][: sizes.made_size]
    made = made[to_line(made) if sizes.made_size > 0 else 0 :]
    own = own[to_line(own) :]  # else every vector of sums would lie in two lines
    return slab, totals, own[sizes.list_size :], made, address_of(own)


@helper
def keep_check(check, scratch, sizes, terms, workers, worker):
    """Leave what tells of weights that are not finite where `product` looks."""
    scratch[2 * terms * 8 // scratch.itemsize + workers * sizes.own_size + worker] = check


@task(
    "i i r1 sizes n1 panel_sizes n1 r4 i i i i i c1 c1 c1 w3", sizes=SIZES, panel_sizes=PANEL_SIZES
)  # fmt: skip
def sum_blocks(
    row_begin, row_end, bias, sizes, phases, panel_sizes, first_taps, weight, block_at, block_offsets, group, column,
    columns, made, totals, scratch, output,
):  # fmt: skip
    """Compute the rows of a part of the tiles in few columns, by blocks of terms of which a few panels are made.

    So weights that are met once or twice are read in rows, and come back from no farther than the first-level cache.
    In the end the first of the totals is 0, or NaN where a weight is not finite, of which a sum would tell.
    """
    size, rows, taps, together = output.itemsize, sizes.rows, panel_sizes.taps, sizes.together
    few = few_of(columns, sizes)
    whole = columns - few
    tall_size = together * rows * sizes.lanes if whole > 0 else 0
    group_size = tall_size + together * sizes.start_size * few_stored(few)
    first_tile = group * tiles_of(weight, first_taps, panel_sizes)
    check = output.dtype.type(0)
    for inner in range(0, weight.shape[1], sizes.block_channels):
        stop = min(inner + sizes.block_channels, weight.shape[1])
        own_terms = (stop - inner) * taps
        offsets = block_offsets + inner * taps * 8
        begins, ends = inner == 0, stop == weight.shape[1]
        for begin in range(row_begin, row_end, together):
            count = min(together, row_end - begin)
            call_task(
                panel_sizes.pack_tiles,
                (weight, first_taps, panel_sizes, first_tile + begin, first_tile + begin + count, inner, stop, made),
            )  # fmt: skip
            made_size = count * own_terms * rows
            for j in range(made_size, made_size + sizes.start_size - rows):
                made[j] = 0
            if whole > 0 and ends:
                check += nothing_of(made, 0, made_size)
            own = totals[(begin - row_begin) // together * group_size :]
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
                if begins and count - t < sizes.few_tiles:  # else what no tile writes may tell of weights
                    for j in range(own_few.size):
                        own_few[j] = 0
                sum_few(
                    begin + t, min(sizes.few_tiles, count - t), bias, sizes, phases, panel_sizes, own_terms,
                    address_of(made) + t * own_terms * rows * size, block_at + whole * size, offsets, group,
                    column + whole, few, begins, ends, own_few, scratch, output,
                )  # fmt: skip
                if ends and whole == 0:
                    check += nothing_of(own_few, 0, few * sizes.few_tiles * sizes.start_size)
    totals[0] = check


@helper
def nothing_of_group(weight, group, check):
    """As nothing_of, of all weights of a group; `check` is 0, or the NaN of another group."""
    for i in range(weight.shape[1]):
        for c in range(weight.shape[2]):
            for k in range(weight.shape[3]):
                check += weight[group, i, c, k] * weight.dtype.type(0)
    return check


@helper
def block_of(source, planes, sizes, panel_sizes, group, column, columns, terms, slab, scratch):
    """Where a block of columns lies, in the source or, packed, in the slab.

    Its address, that of the offsets of its rows, and the width of its strips.
    """
    source_at = direct_source(source, sizes, group, column, columns)
    if source_at != 0:
        return source_at, address_of(scratch) + terms * 8, columns
    call_task(panel_sizes.pack_slab, (source, planes, sizes, panel_sizes, group, column, columns, slab))
    return address_of(slab), address_of(scratch), sizes.strip


@helper
def direct_source(source, sizes, group, column, columns):
    """The address of a block's first sample where all that its tiles load lies inside an item; else 0."""
    if sizes.in_place == 0:
        return 0
    item, at = column // sizes.item_columns, column % sizes.item_columns
    first = sizes.q_first + at - sizes.crop_in
    end = first + -(-columns // sizes.lanes) * sizes.lanes + sizes.few_columns  # more than any tile loads
    if at + columns > sizes.item_columns or first - sizes.lead < 0 or end + sizes.tail > source.shape[2]:
        return 0
    channel = group * (source.shape[1] // sizes.groups)
    return address_of(source) + item * source.strides[0] + channel * source.strides[1] + first * source.itemsize
