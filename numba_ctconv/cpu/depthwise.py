"""The fast path of layers with one input channel a group, and for the gradients one output channel too.

Each row of such a layer, (item, channel), meets one row of the source, and little is multiplied: memory sets the pace.
depthwise_rows computes a stretch of positions in place; here a row is cut into what lies inside both arrays and what
touches an end of either, which goes through scratch memory with zeros where the source has ended. What is computed for
a position is the same either way.

Called by the engine with its scratch memory; nothing here allocates or checks.
"""

from numba import prange

from .compilation import helper, kernel
from .intrinsics import address_of, call_move
from .rows import nothing_of, total

CHUNK = 64  # positions that pass through scratch memory at once
STRETCH = 512  # positions that a lane of grad_weight's sums takes its share of before they are added up


@kernel("r3 c3 r1 i i i i i i i i i i i i c2 w3")
def rows(source, weight, bias, row, step_in, lead, tail, crop_in, step_out, crop_out, position, positions, lanes,
         workers, stretches, scratch, target):  # fmt: skip
    """Forward and grad_input: the positions from `position` on of each row, computed by the C function at `row`.

    Position q takes the samples from (q - lead)·step_in - crop_in up to (q + tail + 1)·step_in - crop_in, and gives
    those from q·step_out - crop_out on, step_out of them. Rows are cut into `stretches` for the workers. Scratch
    (workers, -): samples, results, and what a row starts from.
    """
    batch, channels, length = target.shape
    multiplier = channels // source.shape[1]
    size = target.itemsize
    taps = weight.shape[2]
    inside_begin = max(lead + -(-crop_in // step_in), -(-crop_out // step_out))
    inside_end = min((source.shape[2] + crop_in) // step_in - tail, (length + crop_out) // step_out)
    if source.strides[2] != size or target.strides[2] != size:
        inside_end = inside_begin
    tasks = batch * channels * stretches
    for worker in prange(workers):
        start = scratch[worker, scratch.shape[1] - 1 :]
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            line, stretch = task // stretches, task % stretches
            item = line // channels
            channel = line - item * channels
            begin = position + stretch * positions // stretches
            end = position + (stretch + 1) * positions // stretches
            first = min(max(begin, inside_begin), end)
            last = max(min(end, inside_end), first)
            if last - first < lanes:
                last = first
            start[0] = -bias[channel] if bias.size > 0 else 0
            start_at = address_of(start)
            weights_at = address_of(weight) + channel * taps * size
            samples, results = source[item, channel // multiplier], target[item, channel]
            through_scratch(
                samples, row, weights_at, start_at, step_in, lead, tail, crop_in, step_out, crop_out, begin, first,
                lanes, scratch[worker], results,
            )  # fmt: skip
            if last > first:
                whole = (last - first) // lanes * lanes
                source_at = address_of(samples) + (first * step_in - crop_in) * size
                target_at = address_of(results) + (first * step_out - crop_out) * size
                call_move(row, source_at, weights_at, whole, target_at, start_at)
                if whole < last - first:  # the last vector once more, so that it ends where the positions do
                    back = last - first - lanes
                    call_move(
                        row, source_at + back * step_in * size, weights_at, lanes, target_at + back * step_out * size,
                        start_at,
                    )  # fmt: skip
            through_scratch(
                samples, row, weights_at, start_at, step_in, lead, tail, crop_in, step_out, crop_out, last, end,
                lanes, scratch[worker], results,
            )  # fmt: skip


@helper
def through_scratch(samples, row, weights_at, start_at, step_in, lead, tail, crop_in, step_out, crop_out, begin, end,
                    lanes, scratch, results):  # fmt: skip
    """Compute the positions in [begin, end) from a copy of their samples, and keep those results that exist."""
    given = scratch[: (lead + CHUNK + tail) * step_in]
    made = scratch[given.size : given.size + CHUNK * step_out]
    for first in range(begin, end, CHUNK):
        count = min(CHUNK, end - first)
        whole = -(-count // lanes) * lanes
        copy_padded(samples, (first - lead) * step_in - crop_in, given[: (lead + whole + tail) * step_in])
        source_at = address_of(given) + lead * step_in * given.itemsize
        call_move(row, source_at, weights_at, whole, address_of(made), start_at)
        l = first * step_out - crop_out
        for j in range(max(0, -l), min(count * step_out, results.size - l)):
            results[l + j] = made[j]


@helper
def copy_padded(samples, first, copy):
    """Samples from `first` on, and zero before the first and after the last."""
    begin = min(max(0, -first), copy.size)
    end = max(begin, min(copy.size, samples.size - first))
    copy[:begin] = 0
    for j in range(begin, end):
        copy[j] = samples[first + j]
    copy[end:] = 0


@kernel("r3 r3 i i i i i i c2 c1 w3")
def grad_weight(grad_output, input, row, stride, reach, crop, lanes, workers, scratch, infinite, grad_weight):
    """The sums over time of each channel, by the C function at `row`.

    Scratch (workers, -): the sums of each lane, and samples of both operands. `infinite` gets a NaN where an operand is
    not finite.
    """
    batch, channels, length = input.shape
    size = input.itemsize
    taps = grad_weight.shape[2]
    inside_begin = -(-crop // stride)
    inside_end = (grad_output.shape[2] + crop) // stride - reach
    if grad_output.strides[2] != size or input.strides[2] != size:
        inside_end = inside_begin
    for worker in prange(workers):
        sums = scratch[worker, : taps * lanes]
        given = scratch[worker, sums.size : sums.size + (STRETCH + reach) * stride]
        met = scratch[worker, sums.size + given.size : sums.size + given.size + STRETCH]
        check = infinite.dtype.type(0)
        for channel in range(worker * channels // workers, (worker + 1) * channels // workers):
            sums[:] = 0
            for item in range(batch):
                x, dy = input[item, channel], grad_output[item, channel]
                check += nothing_of(x) + nothing_of(dy)
                for t in range(0, length, STRETCH):
                    count = min(STRETCH, length - t)
                    x_at = address_of(x) + t * size
                    dy_at = address_of(dy) + (t * stride - crop) * size
                    if count % lanes != 0 or input.strides[2] != size:
                        copy_padded(x[t : t + count], 0, met[: -(-count // lanes) * lanes])
                        x_at = address_of(met)
                    if t < inside_begin or t + -(-count // lanes) * lanes > inside_end:
                        copy_padded(dy, t * stride - crop, given[: (-(-count // lanes) * lanes + reach) * stride])
                        dy_at = address_of(given)
                    call_move(row, x_at, dy_at, -(-count // lanes) * lanes, address_of(sums), 0)
            for k in range(taps):
                grad_weight[channel, 0, k] = total(sums[k * lanes : (k + 1) * lanes])
        infinite[worker] = check
