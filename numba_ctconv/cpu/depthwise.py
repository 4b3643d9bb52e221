"""The fast path of layers with one input channel a group, and for the gradients one output channel too.

Each row of such a layer, (item, channel), meets one row of the source, and little is multiplied: memory sets the pace.
The functions of depthwise_rows compute rows in place, many a call, for rows may be short; here the work is shared out
and cut into what lies inside both arrays and what touches an end of either. Arrays that are not contiguous in time pass
through scratch memory. What is computed for a position is the same either way.

Called by the engine with its scratch memory; nothing here allocates or checks.
"""

from numba import prange

from .compilation import helper, kernel
from .intrinsics import address_of, call_rows, release_gil, take_gil
from .rows import add_samples, copy_padded
from .target import CACHE_LINE

CHUNK = 512  # positions that pass through scratch memory at once
LEAST_ON_LINES = 8  # vectors of a row, from which it pays to store them on lines and what is before them apart
CACHED_BYTES = 256 * 1024  # of rows that are read again out of the second-level cache


@kernel("r3 c3 r1 i i i i i i i i i i i i i c2 w3", nogil=False)
def rows(
    source, weight, bias, function, step_in, lead, tail, crop_in, step_out, crop_out, position, positions, lanes,
    workers, stretches, long, scratch, target,
):  # fmt: skip
    """Forward and grad_input: the positions from `position` on of each row, by the function at an address.

    Position q takes the samples from (q - lead)·step_in - crop_in up to (q + tail + 1)·step_in - crop_in, and gives
    those from q·step_out - crop_out on, step_out of them. Rows are cut into `stretches` for the workers. Other Python
    threads may run during a `long` call.

    Scratch (workers, -): the bias of a layer that has none, samples and results of a chunk.
    """
    gil = release_gil(long)
    batch, channels, length = target.shape
    multiplier = channels // source.shape[1]
    size = target.itemsize
    in_place = source.strides[2] == size and target.strides[2] == size
    given, made = 1, 1 + (lead + CHUNK + tail) * step_in
    tasks = batch * channels * stretches
    for worker in prange(workers):
        scratch_at = address_of(scratch) + worker * scratch.strides[0]
        scratch[worker, 0] = -0.0
        bias_at, bias_step = scratch_at, 0
        if bias.size > 0:
            bias_at, bias_step = address_of(bias), bias.strides[0]
        task, last = worker * tasks // workers, (worker + 1) * tasks // workers
        while task < last:
            line, stretch = task // stretches, task % stretches
            item = line // channels
            channel = line - item * channels
            group, weight_at = channel // multiplier, address_of(weight) + channel * weight.shape[2] * size
            begin = position + stretch * positions // stretches
            end = position + (stretch + 1) * positions // stretches
            if in_place:
                count = min(last - task, channels - channel) if stretches == 1 else 1
                first_in, first_out = begin * step_in - crop_in, begin * step_out - crop_out
                stop_out = min(length, end * step_out - crop_out)
                target_at = address_of(target) + item * target.strides[0] + channel * target.strides[1]
                results_at = target_at + first_out * size if target.strides[1] % CACHE_LINE == 0 else 0
                inside, stop = far_from_ends(
                    first_in, source.shape[2], step_in, lead, tail, first_out, stop_out, step_out, end - begin, lanes,
                    results_at, step_out * size,
                )  # fmt: skip
                call_rows(function, (
                    address_of(source) + item * source.strides[0] + group * source.strides[1], source.strides[1],
                    source.shape[2], first_in,
                    target_at, target.strides[1], stop_out, first_out,
                    weight_at, bias_at + channel * bias_step, bias_step, multiplier, channel - group * multiplier,
                    count, inside, stop, end - begin,
                ))  # fmt: skip
                task += count
                continue
            for chunk in range(begin, end, CHUNK):
                count = min(CHUNK, end - chunk)
                samples = (lead + count + tail) * step_in
                first = (chunk - lead) * step_in - crop_in
                copy_padded(source, item, group, first, samples, scratch, worker, given)
                inside, stop = far_from_ends(
                    lead * step_in, samples, step_in, lead, tail, 0, count * step_out, step_out, count, lanes, 0, 0
                )
                call_rows(function, (
                    scratch_at + given * size, 0, samples, lead * step_in,
                    scratch_at + made * size, 0, count * step_out, 0,
                    weight_at, bias_at + channel * bias_step, 0, 1, 0, 1, inside, stop, count,
                ))  # fmt: skip
                keep(scratch, worker, made, count * step_out, target, item, channel, chunk * step_out - crop_out)
            task += 1
    take_gil(gil)


@helper
def far_from_ends(
    first_in, length_in, step_in, lead, tail, first_out, length_out, step_out, positions, lanes, results_at, step
):  # fmt: skip
    """Whole vectors of positions, from one on up to another, whose samples all lie inside both arrays.

    The results of position 0 lie at `results_at` and those of others by so many bytes on, in all rows alike: where
    there are many, they are stored from the beginning of a cache line on. 0 where rows lie in lines as they come.
    """
    begin = max(0, lead - first_in // step_in, -(first_out // step_out))
    end = min(positions, (length_in - first_in) // step_in - tail, (length_out - first_out) // step_out)
    whole = -(-begin // lanes) * lanes
    if results_at != 0 and end - begin >= LEAST_ON_LINES * lanes:
        on_line = begin
        while on_line < begin + lanes and (results_at + on_line * step) % CACHE_LINE != 0:
            on_line += 1
        whole = on_line if on_line < begin + lanes else whole
    if end - whole < lanes:
        return 0, 0
    return whole, whole + (end - whole) // lanes * lanes


@helper
def keep(scratch, worker, at, count, target, item, channel, first):
    """Those of so many results that exist, from the sample `first` on."""
    for j in range(max(0, -first), min(count, target.shape[2] - first)):
        target[item, channel, first + j] = scratch[worker, at + j]


@kernel("r3 r3 i i i i i i i i i i c2 c1 w3 w1", nogil=False)
def grad_weight(
    grad_output, input, function, add_rows, add_lanes, stride, tail, crop, lanes, together, workers, long, scratch,
    infinite, grad_weight, grad_bias,
):  # fmt: skip
    """The sums over time of each channel, by the functions at three addresses; so many channels after each other.

    The samples of the output gradient are added up for the bias, where it has a gradient, while they are in a cache.
    Other Python threads may run during a `long` call.

    Scratch (workers, -): the sums of each lane and of all, and samples of both operands. `infinite` gets a NaN where a
    sum is not finite, which a sample may have done to it that meets none.
    """
    gil = release_gil(long)
    batch, channels, length = input.shape
    size = input.itemsize
    taps = grad_weight.shape[2]
    in_place = input.strides[2] == size and grad_output.strides[2] == size
    bias_sums = together * taps * lanes
    totals = bias_sums + together * lanes
    given = totals + together * taps
    met = given + (CHUNK + tail) * stride
    inside, stop = far_from_ends(-crop, grad_output.shape[2], stride, 0, tail, 0, length, 1, length, lanes, 0, 0)
    cached = max(1, CACHED_BYTES // (grad_output.shape[2] * size))
    for worker in prange(workers):
        scratch_at = address_of(scratch) + worker * scratch.strides[0]
        check = infinite.dtype.type(0)
        last = (worker + 1) * channels // workers
        for first in range(worker * channels // workers, last, together):
            count = min(together, last - first)
            for j in range(totals):
                scratch[worker, j] = 0
            for item in range(batch):
                for channel in range(0, count, cached):
                    own = min(cached, count - channel)
                    add_products(
                        grad_output, input, item, first + channel, own, function, stride, tail, crop, lanes, taps,
                        in_place, inside, stop, scratch, worker, channel * taps * lanes, given, met,
                    )  # fmt: skip
                    if grad_bias.size > 0:
                        add_samples(
                            grad_output, item, first + channel, own, add_rows, lanes, scratch, worker,
                            bias_sums + channel * lanes, given, CHUNK,
                        )  # fmt: skip
            call_rows(add_lanes, (scratch_at, count * taps, scratch_at + totals * size))
            for channel in range(count):
                for k in range(taps):
                    total = scratch[worker, totals + channel * taps + k]
                    check += total * 0
                    grad_weight[first + channel, 0, k] = total
            if grad_bias.size > 0:
                call_rows(add_lanes, (scratch_at + bias_sums * size, count, scratch_at + totals * size))
                for channel in range(count):
                    grad_bias[first + channel] = scratch[worker, totals + channel]
        infinite[worker] = check
    take_gil(gil)


@helper
def add_products(
    grad_output, input, item, first, count, function, stride, tail, crop, lanes, taps, in_place, inside, stop, scratch,
    worker, sums, given, met,
):  # fmt: skip
    """Add an item's products to the sums of so many channels."""
    size = input.itemsize
    length = input.shape[2]
    scratch_at = address_of(scratch) + worker * scratch.strides[0]
    if in_place:
        call_rows(function, (
            address_of(input) + item * input.strides[0] + first * input.strides[1], input.strides[1], length,
            address_of(grad_output) + item * grad_output.strides[0] + first * grad_output.strides[1],
            grad_output.strides[1], grad_output.shape[2], -crop, scratch_at + sums * size, count, inside, stop,
        ))  # fmt: skip
        return
    for channel in range(count):
        for t in range(0, length, CHUNK):
            own = min(CHUNK, length - t)
            copy_padded(input, item, first + channel, t, own, scratch, worker, met)
            samples = (own + tail) * stride
            copy_padded(grad_output, item, first + channel, t * stride - crop, samples, scratch, worker, given)
            call_rows(function, (
                scratch_at + met * size, 0, own, scratch_at + given * size, 0, samples, 0,
                scratch_at + (sums + channel * taps * lanes) * size, 1, 0, own // lanes * lanes,
            ))  # fmt: skip
