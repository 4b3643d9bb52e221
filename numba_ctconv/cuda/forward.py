"""Forward on the GPU: y[n, o, l] = bias[o] + Σ_i Σ_{k, t: t·stride + k·dilation = l + crop_left} w[i, o, k]·x[i, t].

Called by the engine; the kernels neither allocate nor check.
"""

from numba import cuda

from .reach import pairs_at, steps_inside
from .sums import wide


@cuda.jit
def gather(input, weight, bias, stride, dilation, phase_step, inverse, crop_left, groups, output):
    """One thread owns output[n, o, l]: bias, then channels, then taps in rising order, whatever the grid."""
    in_channels, group_rows, taps = weight.shape
    _, out_channels, output_length = output.shape
    group_channels = in_channels // groups
    tap_step = stride // phase_step
    input_step = dilation // phase_step
    zero = wide(output.dtype.type(0))
    for owned in range(cuda.grid(1), output.size, cuda.gridsize(1)):
        l = owned % output_length
        o = owned // output_length % out_channels
        n = owned // output_length // out_channels
        group = o // group_rows
        row = o % group_rows
        k, t, pairs = pairs_at(l + crop_left, taps, input.shape[2], stride, dilation, phase_step, inverse)
        total = wide(bias[o]) if bias.size > 0 else zero
        for i in range(group * group_channels, (group + 1) * group_channels):
            for m in range(pairs):
                total += wide(weight[i, row, k + m * tap_step]) * wide(input[n, i, t - m * input_step])
        output[n, o, l] = total


@cuda.jit
def scatter(input, weight, stride, dilation, crop_left, groups, output):
    """One thread takes input[n, i, t] and adds it to every output that its taps reach; output holds the bias.

    Atomic additions come in any order, so bits may differ from run to run; in float32 they flush subnormals.
    """
    in_channels, group_rows, taps = weight.shape
    input_length = input.shape[2]
    group_channels = in_channels // groups
    for owned in range(cuda.grid(1), input.size, cuda.gridsize(1)):
        t = owned % input_length
        i = owned // input_length % in_channels
        n = owned // input_length // in_channels
        first_row = i // group_channels * group_rows
        start = t * stride - crop_left
        k_first, k_end = steps_inside(start, dilation, taps, output.shape[2])
        x = input[n, i, t]
        for row in range(group_rows):
            for k in range(k_first, k_end):
                cuda.atomic.add(output, (n, first_row + row, start + k * dilation), weight[i, row, k] * x)
