"""Gradients of weight and bias on the GPU.

dw[i, o, k] = Σ_n Σ_t x[n, i, t]·dy[n, o, t·stride + k·dilation - crop_left] and db[o] = Σ_n Σ_l dy[n, o, l].

Called by the engine; the kernels neither allocate nor check. In the gather kernels a block owns an element: each of its
threads sums every blockDim-th term, and a tree adds up what they found. The engine's blocks have launch.LANES threads,
never more, and so always the same order.
"""

from numba import cuda

from .launch import LANES
from .reach import steps_inside
from .sums import sum_dtype, wide


@cuda.jit(device=True)
def tree_sum(partial, lane, lanes):
    """Add up partial[:lanes] into partial[0], the upper half onto the lower until one is left."""
    cuda.syncthreads()
    while lanes > 1:
        half = (lanes + 1) // 2
        if lane + half < lanes:
            partial[lane] += partial[lane + half]
        cuda.syncthreads()
        lanes = half


@cuda.jit
def gather(grad_output, input, stride, dilation, crop_left, groups, grad_weight):
    """One block owns grad_weight[i, row, k]; its threads share the terms, time within items."""
    in_channels, group_rows, taps = grad_weight.shape
    batch, _, input_length = input.shape
    group_channels = in_channels // groups
    lane = cuda.threadIdx.x
    lanes = cuda.blockDim.x
    partial = cuda.shared.array(LANES, sum_dtype(grad_weight))
    for owned in range(cuda.blockIdx.x, grad_weight.size, cuda.gridDim.x):
        k = owned % taps
        row = owned // taps % group_rows
        i = owned // taps // group_rows
        o = i // group_channels * group_rows + row
        start = k * dilation - crop_left
        t_first, t_end = steps_inside(start, stride, input_length, grad_output.shape[2])
        total = wide(grad_weight.dtype.type(0))
        terms = t_end - t_first  # of an item
        if terms > 0:
            n = lane // terms
            t = t_first + lane % terms
            n_step = lanes // terms
            t_step = lanes % terms
            while n < batch:
                total += wide(input[n, i, t]) * wide(grad_output[n, o, t * stride + start])
                n += n_step
                t += t_step
                if t >= t_end:
                    n += 1
                    t -= terms
        partial[lane] = total
        tree_sum(partial, lane, lanes)
        if lane == 0:
            grad_weight[i, row, k] = partial[0]


@cuda.jit
def scatter(grad_output, input, stride, dilation, crop_left, groups, grad_weight):
    """One thread takes input[n, i, t] and adds its products to the weights that carry it; grad_weight holds 0.

    Atomic additions come in any order, so bits may differ from run to run; in float32 they flush subnormals.
    """
    in_channels, group_rows, taps = grad_weight.shape
    input_length = input.shape[2]
    group_channels = in_channels // groups
    for owned in range(cuda.grid(1), input.size, cuda.gridsize(1)):
        t = owned % input_length
        i = owned // input_length % in_channels
        n = owned // input_length // in_channels
        first_row = i // group_channels * group_rows
        start = t * stride - crop_left
        k_first, k_end = steps_inside(start, dilation, taps, grad_output.shape[2])
        x = input[n, i, t]
        for row in range(group_rows):
            for k in range(k_first, k_end):
                cuda.atomic.add(grad_weight, (i, row, k), x * grad_output[n, first_row + row, start + k * dilation])


@cuda.jit
def bias_gather(grad_output, grad_bias):
    """One block owns grad_bias[o]; its threads share the terms, time within items."""
    batch, _, length = grad_output.shape
    lane = cuda.threadIdx.x
    lanes = cuda.blockDim.x
    partial = cuda.shared.array(LANES, sum_dtype(grad_bias))
    for o in range(cuda.blockIdx.x, grad_bias.size, cuda.gridDim.x):
        total = wide(grad_bias.dtype.type(0))
        for n in range(batch):
            for l in range(lane, length, lanes):
                total += wide(grad_output[n, o, l])
        partial[lane] = total
        tree_sum(partial, lane, lanes)
        if lane == 0:
            grad_bias[o] = partial[0]


@cuda.jit
def bias_scatter(grad_output, grad_bias):
    """One thread takes grad_output[n, o, l] and adds it to grad_bias[o], which holds 0; atomically, as scatter does."""
    _, out_channels, length = grad_output.shape
    for owned in range(cuda.grid(1), grad_output.size, cuda.gridsize(1)):
        l = owned % length
        o = owned // length % out_channels
        n = owned // length // out_channels
        cuda.atomic.add(grad_bias, o, grad_output[n, o, l])
