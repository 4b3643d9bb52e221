"""The fast path of layers with one input channel a group, and for the gradients one output channel too.

Each row of such a layer, (item, channel), meets one row of the source, and little is multiplied: memory sets the pace.
depthwise_rows computes a stretch of positions in place; here a row is cut into what lies inside both arrays and what
touches an end of either, which goes through scratch memory with zeros where the source has ended. What is computed for
a position is the same either way.

Called by the engine with its scratch memory; nothing here allocates or checks. Rows may be short and many, so nothing
here takes a view of an array, which Numba would count a reference for.
"""

from numba import prange

from .compilation import helper, kernel
from .intrinsics import address_of, call_move, copy_bytes

CHUNK = 64  # positions that pass through scratch memory at once
STRETCH = 512  # positions that a lane of grad_weight's sums takes its share of before they are added up


@kernel("r3 c3 r1 i i i i i i i i i i i i c2 w3")
def rows(
    source, weight, bias, row, step_in, lead, tail, crop_in, step_out, crop_out, position, positions, lanes, workers,
    stretches, scratch, target,
):  # fmt: skip
    """Forward and grad_input: the positions from `position` on of each row, computed by the C function at `row`.

    Position q takes the samples from (q - lead)·step_in - crop_in up to (q + tail + 1)·step_in - crop_in, and gives
    those from q·step_out - crop_out on, step_out of them. Rows are cut into `stretches` for the workers. Scratch
    (workers, -): what a row starts from, samples and results of a chunk.
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
        start_at = address_of(scratch) + worker * scratch.strides[0]
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            line, stretch = task // stretches, task % stretches
            item = line // channels
            channel = line - item * channels
            begin = position + stretch * positions // stretches
            end = position + (stretch + 1) * positions // stretches
            first = min(max(begin, inside_begin), end)
            last = max(min(end, inside_end), first)
            if last - first < lanes or end - begin <= CHUNK:  # too little, or all passes through scratch at once
                last = first
            scratch[worker, 0] = -bias[channel] if bias.size > 0 else 0
            weights_at = address_of(weight) + channel * taps * size
            chunk = begin
            while chunk < end:
                if chunk == first and last > first:
                    whole = (last - first) // lanes * lanes
                    source_at = (
                        address_of(source) + item * source.strides[0] + channel // multiplier * source.strides[1]
                    )
                    source_at += (first * step_in - crop_in) * size
                    target_at = address_of(target) + item * target.strides[0] + channel * target.strides[1]
                    target_at += (first * step_out - crop_out) * size
                    call_move(row, source_at, weights_at, whole, target_at, start_at)
                    if whole < last - first:  # the last vector once more, so that it ends where the positions do
                        back = last - first - lanes
                        source_at += back * step_in * size
                        target_at += back * step_out * size
                        call_move(row, source_at, weights_at, lanes, target_at, start_at)
                    chunk = last
                    continue
                count = min(CHUNK, (first if chunk < first else end) - chunk)
                whole = -(-count // lanes) * lanes
                given, made = 1, 1 + (lead + CHUNK + tail) * step_in
                copy_padded(
                    source, item, channel // multiplier, (chunk - lead) * step_in - crop_in,
                    (lead + whole + tail) * step_in, scratch, worker, given,
                )  # fmt: skip
                call_move(
                    row, start_at + (given + lead * step_in) * size, weights_at, whole, start_at + made * size, start_at
                )
                keep(scratch, worker, made, count * step_out, target, item, channel, chunk * step_out - crop_out)
                chunk += count


@helper
def copy_padded(source, item, channel, first, count, scratch, worker, at):
    """So many samples from `first` on, with zero before the first that is there and after the last."""
    begin = min(max(0, -first), count)
    end = max(begin, min(count, source.shape[2] - first))
    for j in range(begin):
        scratch[worker, at + j] = 0
    if source.strides[2] == source.itemsize and end > begin:
        copy_bytes(
            address_of(scratch) + worker * scratch.strides[0] + (at + begin) * scratch.itemsize,
            address_of(source) + item * source.strides[0] + channel * source.strides[1]
            + (first + begin) * source.itemsize,
            (end - begin) * source.itemsize,
        )  # fmt: skip
    else:
        for j in range(begin, end):
            scratch[worker, at + j] = source[item, channel, first + j]
    for j in range(end, count):
        scratch[worker, at + j] = 0


@helper
def keep(scratch, worker, at, count, target, item, channel, first):
    """Those of so many results that exist, from the sample `first` on."""
    begin, end = max(0, -first), min(count, target.shape[2] - first)
    if target.strides[2] == target.itemsize and end > begin:
        copy_bytes(
            address_of(target) + item * target.strides[0] + channel * target.strides[1]
            + (first + begin) * target.itemsize,
            address_of(scratch) + worker * scratch.strides[0] + (at + begin) * scratch.itemsize,
            (end - begin) * target.itemsize,
        )  # fmt: skip
    else:
        for j in range(begin, end):
            target[item, channel, first + j] = scratch[worker, at + j]


@kernel("r3 r3 i i i i i i c2 c1 w3")
def grad_weight(grad_output, input, row, stride, reach, crop, lanes, workers, scratch, infinite, grad_weight):
    """The sums over time of each channel, by the C function at `row`.

    Scratch (workers, -): the sums of each lane, and samples of both operands. `infinite` gets a NaN where a sum is
    not finite, which a sample may have done to it that meets none.
    """
    batch, channels, length = input.shape
    size = input.itemsize
    taps = grad_weight.shape[2]
    inside_begin = -(-crop // stride)
    inside_end = (grad_output.shape[2] + crop) // stride - reach
    if grad_output.strides[2] != size:
        inside_end = inside_begin
    given = taps * lanes
    met = given + (STRETCH + reach) * stride
    for worker in prange(workers):
        scratch_at = address_of(scratch) + worker * scratch.strides[0]
        check = infinite.dtype.type(0)
        for channel in range(worker * channels // workers, (worker + 1) * channels // workers):
            for j in range(taps * lanes):
                scratch[worker, j] = 0
            for item in range(batch):
                for t in range(0, length, STRETCH):
                    count = min(STRETCH, length - t)
                    whole = -(-count // lanes) * lanes
                    x_at = address_of(input) + item * input.strides[0] + channel * input.strides[1] + t * size
                    if count < whole or input.strides[2] != size:
                        copy_padded(input, item, channel, t, whole, scratch, worker, met)
                        x_at = scratch_at + met * size
                    dy_at = address_of(grad_output) + item * grad_output.strides[0] + channel * grad_output.strides[1]
                    dy_at += (t * stride - crop) * size
                    if t < inside_begin or t + whole > inside_end:
                        first, samples = t * stride - crop, (whole + reach) * stride
                        copy_padded(grad_output, item, channel, first, samples, scratch, worker, given)
                        dy_at = scratch_at + given * size
                    call_move(row, x_at, dy_at, whole, scratch_at, 0)
            for k in range(taps):
                total = infinite.dtype.type(0)
                for j in range(lanes):
                    total += scratch[worker, k * lanes + j]
                check += total * 0
                grad_weight[channel, 0, k] = total
        infinite[worker] = check
