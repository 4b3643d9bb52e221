"""Gradient of the input on the GPU: dx[n, i, t] = Σ_o Σ_k w[i, o, k]·dy[n, o, t·stride + k·dilation - crop_left].

Called by the engine; the kernels neither allocate nor check.
"""

from numba import cuda

from .reach import pairs_at, steps_inside
from .sums import wide


@cuda.jit
def gather(grad_output, weight, stride, dilation, crop_left, groups, grad_input):
    """One thread owns grad_input[n, i, t]: output channels, then taps in rising order, whatever the grid."""
    _, group_rows, taps = weight.shape
    _, in_channels, input_length = grad_input.shape
    group_channels = in_channels // groups
    zero = wide(grad_input.dtype.type(0))
    for owned in range(cuda.grid(1), grad_input.size, cuda.gridsize(1)):
        t = owned % input_length
        i = owned // input_length % in_channels
        n = owned // input_length // in_channels
        first_row = i // group_channels * group_rows
        start = t * stride - crop_left
        k_first, k_end = steps_inside(start, dilation, taps, grad_output.shape[2])
        total = zero
        for row in range(group_rows):
            for k in range(k_first, k_end):
                total += wide(weight[i, row, k]) * wide(grad_output[n, first_row + row, start + k * dilation])
        grad_input[n, i, t] = total


@cuda.jit
def scatter(grad_output, weight, stride, dilation, phase_step, inverse, crop_left, groups, grad_input):
    """One thread takes grad_output[n, o, l] and adds it to every input that its taps come from; grad_input holds 0.

    Atomic additions come in any order, so bits may differ from run to run; in float32 they flush subnormals.
    """
    in_channels, group_rows, taps = weight.shape
    _, out_channels, output_length = grad_output.shape
    group_channels = in_channels // groups
    tap_step = stride // phase_step
    input_step = dilation // phase_step
    for owned in range(cuda.grid(1), grad_output.size, cuda.gridsize(1)):
        l = owned % output_length
        o = owned // output_length % out_channels
        n = owned // output_length // out_channels
        group = o // group_rows
        row = o % group_rows
        k, t, pairs = pairs_at(l + crop_left, taps, grad_input.shape[2], stride, dilation, phase_step, inverse)
        dy = grad_output[n, o, l]
        for i in range(group * group_channels, (group + 1) * group_channels):
            for m in range(pairs):
                cuda.atomic.add(grad_input, (n, i, t - m * input_step), weight[i, row, k + m * tap_step] * dy)
