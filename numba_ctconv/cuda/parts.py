"""Partial sums that wait in memory, added up in order: of grad_weight's parts, and of forward and grad_input if split.

Called by fast.py with memory for all; nothing here allocates or checks. An element is the sum of the same numbers in
the same order as if one thread block had summed them all (product.py).
"""

from .simt import cuda, kernel, ptx

THREADS = 64  # of a block, so that few elements spread over the chip
AT_ONCE = 16  # loads of a thread that are under way together

load_parts = ptx.load_parts(AT_ONCE)


@kernel(THREADS, 16)
def add_parts(parts, phases, bias, own_phases, step_out, shift, target):
    """target[n, o, q·step_out + phases[p] + shift] = bias[o] + Σ parts[part, o·own_phases + p, n, q], in order."""
    count, rows, batch, positions = parts.shape
    element = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
    q, n, row = element % positions, element // positions % batch, element // positions // batch
    o, p = row // own_phases, row % own_phases
    there = row < rows
    total = parts.dtype.type(0)
    for part in range(0, count, AT_ONCE):
        total = ptx.add_up(total, load_parts(parts, part, row, n, q, there))
    l = q * step_out + ptx.load_element(phases, p, there) + shift
    added = ptx.load_element(bias, o, there & (bias.size > 0))
    ptx.store_sample(target, n, o, l, total + added, there & (l >= 0) & (l < target.shape[2]))
