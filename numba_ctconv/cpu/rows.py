"""What all kernels share: where a walk in steps begins and ends, and the innermost loops of the gather kernels.

Those run over contiguous rows, so that they vectorise.
"""

import numpy as np

from .compilation import helper, reduction
from .intrinsics import address_of, copy_bytes
from .target import CACHE_LINE


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
