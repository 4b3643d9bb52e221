"""Packing for grad_weight's product: inputs into the panel of a tile's rows, and planes of the output gradient in rows.

A part of tiled_weight.share. Nothing here allocates or checks.
"""

from .compilation import helper
from .intrinsics import address_of, call_rows, call_task
from .rows import count_below, first_not_below

NEAR_BYTES = 16 * 1024  # of rows of a slab that stay in the first-level cache while channel after channel is laid there
LEAST_RUNS = 64  # of a channel, which its prefetcher should see
LONG = 4  # times as many, from which they are cut


@helper
def pack_inputs(input, channel, channels, sizes, term, term_end, panel):
    """Let panel[r, m] be input channel + m at term r."""
    length, rows, size = input.shape[2], sizes.rows, panel.itemsize
    contiguous = channels == rows and input.strides[2] == size and input.strides[1] % size == 0
    item, t, done = term // length, term % length, 0
    while done < term_end - term:
        run = min(length - t, term_end - term - done)
        if contiguous:  # what is stored beyond the run is stored anew with the next one; the panel has room
            source = address_of(input) + item * input.strides[0] + channel * input.strides[1] + t * size
            to = address_of(panel) + done * rows * size
            call_task(sizes.interleave, (source, input.strides[1] // size, run, to, rows))
        else:
            for m in range(channels):
                for j in range(run):
                    panel[(done + j) * rows + m] = input[item, channel + m, t + j]
            for m in range(channels, rows):
                for j in range(run):
                    panel[(done + j) * rows + m] = 0
        done += run
        item += 1
        t = 0


@helper
def pack_planes(grad_output, planes, sizes, group, first_channel, channels, term, term_end, item_rows, length, slab):
    """Let a strip's row hold the planes of its channels at a position, for all positions that the terms reach."""
    channel = group * (grad_output.shape[1] // sizes.groups) + first_channel
    output_length = grad_output.shape[2]
    last = term_end - 1
    begin = term // length * item_rows + term % length
    end = last // length * item_rows + last % length + item_rows - length + 1
    size, strip, pitch = slab.itemsize, sizes.strip, sizes.pitch
    # the planes of a position are neighbours, and those of all positions are all samples
    contiguous = grad_output.strides[2] == size and planes[planes.size - 1] - planes[0] == planes.size - 1
    square = sizes.lanes // planes.size if contiguous and sizes.transpose != 0 and planes.size == sizes.stride else 1
    item, at, done = begin // item_rows, begin % item_rows, 0
    while done < end - begin:  # item after item: the rows of a short one stay in the first-level cache meanwhile
        run = min(item_rows - at, end - begin - done)
        near = max(LEAST_RUNS, NEAR_BYTES // (pitch * size))
        if square == 1 and run > LONG * near:  # each row of the slab is written in parts, by as many channels
            run = near
        start = at * sizes.stride - sizes.crop_left + planes[0]  # sample of the first plane of the first position
        # the positions of which all planes lie in the output
        first = min(first_not_below(-start, sizes.stride), run)
        stop = max(count_below(output_length - start - planes.size + 1, sizes.stride, run), first)
        c = 0
        while c < channels:
            place = c % strip
            together = square if place + square <= strip and c + square <= channels else 1
            squares = (stop - first) // square * square if together > 1 else 0
            if squares == 0:
                together = min(strip - place, channels - c)
            column = c // strip * sizes.slab_rows * pitch + place * planes.size + done * pitch
            if squares > 0:
                call_task(
                    sizes.transpose,
                    (address_of(grad_output) + item * grad_output.strides[0] + (channel + c) * grad_output.strides[1]
                     + (start + first * sizes.stride) * size,
                     grad_output.strides[1], squares, address_of(slab) + (column + first * pitch) * size, pitch * size),
                )  # fmt: skip
            lay_positions(
                grad_output, item, channel + c, together, planes, contiguous, start, sizes, first, stop, 0,
                first if squares > 0 else run, column, slab,
            )  # fmt: skip
            if squares > 0:
                lay_positions(
                    grad_output, item, channel + c, together, planes, contiguous, start, sizes, first, stop,
                    first + squares, run, column, slab,
                )  # fmt: skip
            c += together
        done += run
        at += run
        if at == item_rows:
            item, at = item + 1, 0


@helper
def lay_positions(
    grad_output, item, channel, channels, planes, contiguous, start, sizes, inside, inside_end, begin, end, column, slab
):  # fmt: skip
    """The planes of some channels at the positions in [begin, end): zero where there is no sample.

    All planes of a position have one from `inside` to `inside_end`.
    """
    size, length = slab.itemsize, grad_output.shape[2]
    if contiguous and sizes.lay_rows != 0:
        first = start + begin * sizes.stride
        source_at = address_of(grad_output) + item * grad_output.strides[0] + channel * grad_output.strides[1]
        own_begin = max(min(inside, end), begin)
        own_end = max(min(inside_end, end), own_begin)
        call_rows(
            sizes.lay_rows,
            (source_at + first * size, grad_output.strides[1], sizes.stride * size, -first, length - first, channels,
             address_of(slab) + (column + begin * sizes.pitch) * size, planes.size * size, sizes.pitch * size,
             own_begin - begin, own_end - begin, end - begin),
        )  # fmt: skip
        return
    for m in range(channels):
        for j in range(begin, end):
            for p in range(planes.size):
                l = start + j * sizes.stride + planes[p] - planes[0]
                to = column + j * sizes.pitch + m * planes.size + p
                slab[to] = grad_output[item, channel + m, l] if 0 <= l < length else 0
