"""What all kernels share: where a walk in steps begins and ends, and the innermost loops of the gather kernels.

Those run over contiguous rows, so that they vectorise.
"""

import numpy as np

from .compilation import helper, reduction
from .intrinsics import address_of, call_rows, copy_bytes
from .target import CACHE_LINE

ZERO = np.int64(0)  # for a helper's argument: for a literal it would be compiled apart


@helper
def first_not_below(x, step):
    """The smallest n ≥ 0 with n·step ≥ x; divides only where it is not 0."""
    return 0 if x <= 0 else -(-x // step)


@helper
def count_below(x, step, count):
    """How many n in [0, count) have n·step < x; divides only where it is neither none nor all."""
    if x <= 0:
        return 0
    return count if (count - 1) * step < x else -(-x // step)


@helper
def share_of(units, each, before, work, worker, workers):
    """Which of a block's units are a worker's, from one up to another; and the work of this and all blocks before.

    A unit takes `each`, the blocks before took `before`, and all take `work`, of which workers do even parts in turn.
    """
    if workers == 1:
        return ZERO, units, before
    begin = max(worker * work // workers - before, ZERO) // each
    end = max((worker + 1) * work // workers - before, ZERO) // each
    return min(begin, units), min(end, units), before + units * each


@helper
def to_line(scratch):
    """Elements up to the first that begins a cache line."""
    return -address_of(scratch) % CACHE_LINE // scratch.itemsize


@helper
def copy_row(target, source):
    """A row of any stride into contiguous memory."""
    if source.strides[0] == source.itemsize:
        copy_bytes(address_of(target), address_of(source), source.size * source.itemsize)
        return
    for j in range(target.size):
        target[j] = source[j]


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
def add_samples(source, item, first, count, add_rows, lanes, scratch, worker, sums, given, stretch):
    """Add an item's samples of so many channels to the sums of their lanes, by the function at an address.

    Those of a channel are at scratch[worker, sums + channel·lanes]; a row that is not contiguous passes, so many
    samples at once, through scratch[worker, given].
    """
    size, length = source.itemsize, source.shape[2]
    scratch_at = address_of(scratch) + worker * scratch.strides[0]
    if source.strides[2] == size:
        start = address_of(source) + item * source.strides[0] + first * source.strides[1]
        call_rows(add_rows, (start, source.strides[1], count, length, scratch_at + sums * size))
        return
    for channel in range(count):
        for l in range(0, length, stretch):
            own = min(stretch, length - l)
            copy_padded(source, item, first + channel, l, own, scratch, worker, given)
            sums_at = scratch_at + (sums + channel * lanes) * size
            call_rows(add_rows, (scratch_at + given * size, 0, 1, own, sums_at))


@helper
def add_scaled(sums, w, x):
    for j in range(sums.size):
        sums[j] += w * x[j]


@helper
def add_four(sums, w, x0, x1, x2, x3):
    """Four channels a pass, in their order: a sum is loaded and stored once for four products."""
    w0, w1, w2, w3 = w[0], w[1], w[2], w[3]
    for j in range(sums.size):
        sums[j] = w3 * x3[j] + (w2 * x2[j] + (w1 * x1[j] + (w0 * x0[j] + sums[j])))


@reduction
def dot(a, b):
    """Σ_j a[j]·b[j], in as many partial sums as the vectors have lanes."""
    total = a.dtype.type(0)
    for j in range(a.size):
        total += a[j] * b[j]
    return total


@reduction
def nothing_of(a, begin, end):
    """0 where the elements in [begin, end) are finite, else NaN."""
    total = zero = a.dtype.type(0)
    # unsigned, or each index would be asked whether it counts from the end: three times the time
    for j in range(np.uint64(begin), np.uint64(end)):
        total += a[j] * zero
    return total
