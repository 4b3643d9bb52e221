"""The fast path of grad_weight on the CPU: a matrix product that sums over time.

With the output gradient split into planes, tap k of shift h_k and phase r_k has

    dw[i, o, k] = Σ_n Σ_t x[n, i, t] · planes[n, t + h_k, (o, r_k)],

so one row of `planes` holds a position of all channels and phases side by side, and a shift of time is an offset of
whole rows: nothing is copied twice. microkernels.py computes tiles of (input channels) × (channels and phases) for a
stretch of time, which are added up in order.

Called by the engine with its scratch memory; nothing here allocates or checks. The stretches depend on the batch and
the length alone, so threads change no bit.
"""

from numba import prange

from .compilation import helper, kernel
from .intrinsics import address_of, call_move, call_tile, integers
from .rows import count_below, first_not_below, nothing_of, to_line
from .target import CACHE_LINE
from .weight_layout import WeightSizes

sizes_in = integers(len(WeightSizes._fields))


@kernel("r3 r3 n1 n1 n1 n1 i i i n1 i o2 c2 c2 c1 w3")
def product(
    grad_output, input, planes, shifts, taps, tiles, interleave, lay_out, transpose, numbers, workers, offsets,
    scratch, sums, infinite, grad_weight
):  # fmt: skip
    """Workers share (group, block of columns, part of the rows) out evenly.

    `taps` is the tap of each (shift, plane), or -1; `interleave`, `lay_out` and `transpose` (of elements that are all
    planes of a position) are the addresses of moves, 0 where there is none; `numbers` are a WeightSizes. Scratch:
    offsets (workers, stretch), scratch (workers, slab, panel and sums of a tile), sums (workers, rows · shifts ·
    pitch). `infinite` gets a NaN where a sum is not finite, which an input may have done to it that meets no sample.
    """
    sizes = WeightSizes(*sizes_in(numbers))
    rows, width, groups, parts = sizes.rows, sizes.width, sizes.groups, sizes.parts
    batch, in_channels, length = input.shape
    group_channels = grad_weight.shape[1]
    group_rows = in_channels // groups
    columns = group_channels * planes.size
    blocks = -(-columns // width)
    terms = batch * length
    row_size = shifts.size * sizes.pitch
    item_rows = length + shifts[shifts.size - 1]
    size = scratch.itemsize
    line = CACHE_LINE // size  # every vector of a slab and of sums lies in one cache line
    slab_size = sizes.slab_rows * sizes.pitch
    panel_size = -(-sizes.stretch * rows // line) * line
    row_tiles = -(-group_rows // rows)
    tasks = groups * blocks * parts
    for worker in prange(workers):
        own_scratch = scratch[worker, to_line(scratch[worker]) :]
        slab, panel = own_scratch[:slab_size], own_scratch[slab_size : slab_size + panel_size]
        tile_sums = address_of(own_scratch) + (slab_size + panel_size) * size
        nothing = tile_sums + rows * tiles.size * sizes.lanes * size  # what a tile starts from
        own_scratch[slab_size + panel_size + rows * tiles.size * sizes.lanes :] = 0
        total = sums[worker, to_line(sums[worker]) :]
        total_at = address_of(total)
        check = infinite.dtype.type(0)
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            group, block, part = task // parts // blocks, task // parts % blocks, task % parts
            column = block * width
            own = min(width, columns - column)
            tile_begin, tile_end = part * row_tiles // parts, (part + 1) * row_tiles // parts
            total[: (tile_end - tile_begin) * rows * row_size] = 0
            for term in range(0, terms, sizes.stretch):
                term_end = min(term + sizes.stretch, terms)
                first_row = term // length * item_rows + term % length
                pack_planes(
                    grad_output, planes, sizes, group, column, own, term, term_end, item_rows, length, lay_out,
                    transpose, slab,
                )  # fmt: skip
                for r in range(term, term_end):
                    offsets[worker, r - term] = (r // length * item_rows + r % length - first_row) * sizes.pitch
                for row_tile in range(tile_begin, tile_end):
                    channel = group * group_rows + row_tile * rows
                    channels = min(rows, group_rows - row_tile * rows)
                    pack_inputs(input, channel, channels, rows, term, term_end, sizes.lanes, interleave, panel)
                    for h in range(shifts.size):
                        done = 0
                        while done < own:
                            vectors = min(-(-(own - done) // sizes.lanes), tiles.size)
                            span = vectors * sizes.lanes
                            call_tile(
                                tiles[vectors - 1], address_of(panel),
                                address_of(slab) + (shifts[h] * sizes.pitch + done) * size,
                                address_of(offsets) + worker * offsets.strides[0], term_end - term, sizes.block,
                                nothing, tile_sums,
                                total_at + ((row_tile - tile_begin) * rows * row_size + h * sizes.pitch + done) * size,
                                row_size,
                            )  # fmt: skip
                            done += span
            for row in range(tile_begin * rows, min(tile_end * rows, group_rows)):
                row_sums = total[(row - tile_begin * rows) * row_size : (row - tile_begin * rows + 1) * row_size]
                check += nothing_of(row_sums)
                store_taps(
                    row_sums, taps, planes.size, sizes, lay_out, column // planes.size, own // planes.size,
                    grad_weight[group * group_rows + row],
                )  # fmt: skip
        infinite[worker] = check


@helper
def store_taps(sums, taps, planes, sizes, lay_out, channel, channels, grad_weight):
    """Put the sums of each (shift, plane) where its tap stands, for a row of weights."""
    size = grad_weight.itemsize
    moved = (
        sizes.in_order if lay_out != 0 and grad_weight.strides[1] == size and grad_weight.strides[0] % size == 0 else 0
    )
    for h in range(moved):
        call_move(
            lay_out, address_of(sums) + h * sizes.pitch * size, planes, channels,
            address_of(grad_weight) + channel * grad_weight.strides[0] + h * planes * size,
            grad_weight.strides[0] // size,
        )  # fmt: skip
    for c in range(channels):
        for h in range(moved, taps.size // planes):
            for p in range(planes):
                k = taps[h * planes + p]
                if k >= 0:
                    grad_weight[channel + c, k] = sums[h * sizes.pitch + c * planes + p]


@helper
def pack_inputs(input, channel, channels, rows, term, term_end, lanes, interleave, panel):
    """Let panel[r, m] be input channel + m at term r."""
    length = input.shape[2]
    size = panel.itemsize
    contiguous = channels == rows and input.strides[2] == size and input.strides[1] % size == 0
    for m in range(rows):
        if m >= channels:
            for j in range(term_end - term):
                panel[j * rows + m] = 0
            continue
        item, t, done = term // length, term % length, 0
        while done < term_end - term:
            run = min(length - t, term_end - term - done)
            row = panel[done * rows : (done + run) * rows]
            together = run - run % lanes if contiguous else 0
            if m == 0 and together > 0:
                source = item * input.strides[0] + channel * input.strides[1] + t * size
                call_move(
                    interleave, address_of(input) + source, input.strides[1] // size, together, address_of(row), rows
                )
            for j in range(together, run):
                row[j * rows + m] = input[item, channel + m, t + j]
            done += run
            item += 1
            t = 0


@helper
def pack_planes(
    grad_output, planes, sizes, group, column, columns, term, term_end, item_rows, length, lay_out, transpose, slab
):  # fmt: skip
    """Let a row of the slab hold the planes of the block's channels at a position, for all that the terms reach.

    A block begins and ends with a whole channel.
    """
    first_channel = group * (grad_output.shape[1] // sizes.groups) + column // planes.size
    output_length = grad_output.shape[2]
    last = term_end - 1
    begin = term // length * item_rows + term % length
    end = last // length * item_rows + last % length + item_rows - length + 1
    size = slab.itemsize
    contiguous = planes.size == sizes.stride and grad_output.strides[2] == size
    square = sizes.lanes // sizes.stride if contiguous and transpose != 0 else 1  # channels that are transposed at once
    for j in range(end - begin):
        slab[j * sizes.pitch + columns : (j + 1) * sizes.pitch] = 0
    channels = columns // planes.size
    c = 0
    while c < channels:
        together = square if c + square <= channels else 1
        item, at, done = begin // item_rows, begin % item_rows, 0
        while done < end - begin:
            run = min(item_rows - at, end - begin - done)
            start = at * sizes.stride - sizes.crop_left
            # the positions of which all planes lie in the output; at the others each is looked at
            first = min(first_not_below(-start - planes[0], sizes.stride), run)
            stop = max(count_below(output_length - start - planes[planes.size - 1], sizes.stride, run), first)
            source_at = (
                address_of(grad_output) + item * grad_output.strides[0]
                + (first_channel + c) * grad_output.strides[1] + start * size
            )  # fmt: skip
            target_at = address_of(slab) + (done * sizes.pitch + c * planes.size) * size
            squares = first
            if together > 1:
                squares += (stop - first) // together * together
                call_move(
                    transpose, source_at + first * sizes.stride * size, grad_output.strides[1], squares - first,
                    target_at + first * sizes.pitch * size, sizes.pitch * size,
                )  # fmt: skip
            moved = squares
            if contiguous and lay_out != 0:
                moved = stop
                for m in range(together):
                    call_move(
                        lay_out, source_at + m * grad_output.strides[1] + squares * sizes.stride * size, sizes.stride,
                        stop - squares, target_at + (squares * sizes.pitch + m * planes.size) * size, sizes.pitch,
                    )  # fmt: skip
            for m in range(together):
                for j in range(run):
                    if first <= j < moved:
                        continue
                    l = start + j * sizes.stride
                    for p in range(planes.size):
                        inside = 0 <= l + planes[p] < output_length
                        slab[(done + j) * sizes.pitch + (c + m) * planes.size + p] = (
                            grad_output[item, first_channel + c + m, l + planes[p]] if inside else 0
                        )
            done += run
            item += 1
            at = 0
        c += together
