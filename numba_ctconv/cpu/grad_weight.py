"""Gradients of weight and bias on the CPU: dw[i, o, k] = Σ_n Σ_t x[n, i, t]·dy[o, t·stride + k·dilation - crop_left].

Kernels, called by the engine with its scratch memory; they neither allocate nor check. No two tasks write the same
element, and each element is summed in one order, in partial sums whose places do not depend on the threads.

gather       a task owns the weights of a tile of input channels for one output channel; each is a sum of dot products
             over stretches of time, for which each tap's outputs are copied next to each other once.
scatter      a task owns the weights between an input and an output channel, to all of which every input sample adds.
sum_channels the gradient of the bias: a task owns a channel.
"""

from numba import prange

from .compilation import kernel
from .intrinsics import address_of, call_rows, release_gil, take_gil
from .rows import add_samples, copy_row, count_below, dot, first_not_below


@kernel("r3 r3 i i i i i c3 c2 w3")
def gather(grad_output, input, stride, dilation, groups, crop_left, workers, slab, tap, grad_weight):
    """Scratch: slab (workers, rows, stretch) for inputs, tap (workers, stretch) for the outputs that a tap reaches."""
    batch, in_channels, input_length = input.shape
    _, group_channels, taps = grad_weight.shape
    output_length = grad_output.shape[2]
    _, rows, stretch = slab.shape
    group_rows = in_channels // groups
    row_tiles = -(-group_rows // rows)
    tasks = groups * row_tiles * group_channels
    for worker in prange(workers):
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            rest, channel = task // group_channels, task % group_channels
            group, row_tile = rest // row_tiles, rest % row_tiles
            o = group * group_channels + channel
            first = group * group_rows + row_tile * rows
            last = min(first + rows, (group + 1) * group_rows)
            grad_weight[first:last, channel] = 0
            for item in range(batch):
                for t in range(0, input_length, stretch):
                    t_end = min(t + stretch, input_length)
                    for i in range(first, last):
                        copy_row(slab[worker, i - first, : t_end - t], input[item, i, t:t_end])
                    for k in range(taps):
                        start = k * dilation - crop_left  # the output that input 0 reaches
                        begin = max(t, first_not_below(-start, stride))
                        end = count_below(output_length - start, stride, t_end)
                        if begin < end:
                            l, size = start + begin * stride, end - begin
                            dy = tap[worker, :size]
                            copy_row(dy, grad_output[item, o, l : l + (size - 1) * stride + 1 : stride])
                            for i in range(first, last):
                                grad_weight[i, channel, k] += dot(slab[worker, i - first, begin - t : end - t], dy)


@kernel("r3 r3 i i i i i w3")
def scatter(grad_output, input, stride, dilation, groups, crop_left, workers, grad_weight):
    """The taps that an input sample reaches are neighbours, and with dilation 1 so are their outputs."""
    in_channels, group_channels, taps = grad_weight.shape
    batch, _, input_length = input.shape
    output_length = grad_output.shape[2]
    group_rows = in_channels // groups
    tasks = in_channels * group_channels
    for worker in prange(workers):
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            i, channel = task // group_channels, task % group_channels
            o = i // group_rows * group_channels + channel
            grad_weight[i, channel] = 0
            for item in range(batch):
                for t in range(input_length):
                    start = t * stride - crop_left  # where tap 0 lands
                    k_begin = first_not_below(-start, dilation)
                    k_end = count_below(output_length - start, dilation, taps)
                    for k in range(k_begin, k_end):
                        dy = grad_output[item, o, start + k * dilation]
                        grad_weight[i, channel, k] += input[item, i, t] * dy


@kernel("r3 i i i i i i c2 w1", nogil=False)
def sum_channels(grad_output, add_rows, add_lanes, lanes, together, workers, long, scratch, grad_bias):
    """Sum grad_output[n, o, l] over n and l, by the functions at two addresses; so many channels after each other.

    Other Python threads may run during a `long` call.

    Scratch (workers, -): the sums of each lane and of all, and samples of a row that is not contiguous.
    """
    gil = release_gil(long)
    batch, channels, _ = grad_output.shape
    totals, given = together * lanes, together * (lanes + 1)
    stretch = scratch.shape[1] - given
    for worker in prange(workers):
        scratch_at = address_of(scratch) + worker * scratch.strides[0]
        last = (worker + 1) * channels // workers
        for first in range(worker * channels // workers, last, together):
            count = min(together, last - first)
            for j in range(count * lanes):
                scratch[worker, j] = 0
            for item in range(batch):
                add_samples(grad_output, item, first, count, add_rows, lanes, scratch, worker, 0, given, stretch)
            call_rows(add_lanes, (scratch_at, count, scratch_at + totals * scratch.itemsize))
            for channel in range(count):
                grad_bias[first + channel] = scratch[worker, totals + channel]
    take_gil(gil)
