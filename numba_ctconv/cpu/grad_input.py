"""Gradient of the input on the CPU: dx[i, t] = Σ_o Σ_k w[i, o, k]·dy[o, t·stride + k·dilation - crop_left].

Two kernels, called by the engine with its scratch memory; they neither allocate nor check. No two tasks write the same
element, and each element is summed in one order, so neither threads nor tiles change a bit.

gather   a task owns a tile of inputs (rows × stretch of time) and collects from the outputs that they reached; the
         outputs of a tap are copied next to each other once, for all rows of the tile.
scatter  a task owns a stretch of an input row, to which every output gradient adds through the taps of its phase.
"""

from numba import prange

from .compilation import helper, kernel
from .rows import add_four, add_scaled, copy_row, count_below, first_not_below


@kernel("r3 r3 i i i i i c3 c3 w3")
def gather(grad_output, weight, stride, dilation, groups, crop_left, workers, sums, slab, grad_input):
    """Scratch: sums (workers, rows, stretch), slab (workers, channels together, stretch)."""
    _, rows, stretch = sums.shape
    batch, in_channels, input_length = grad_input.shape
    group_rows = in_channels // groups
    row_tiles = -(-group_rows // rows)
    stretches = -(-input_length // stretch)
    tasks = batch * groups * row_tiles * stretches
    for worker in prange(workers):
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            rest, part = task // stretches, task % stretches
            rest, row_tile = rest // row_tiles, rest % row_tiles
            item, group = rest // groups, rest % groups
            t = part * stretch
            t_end = min(t + stretch, input_length)
            first = group * group_rows + row_tile * rows
            last = min(first + rows, (group + 1) * group_rows)
            sums[worker, : last - first, : t_end - t] = 0
            add_taps(
                grad_output[item], weight, stride, dilation, group, crop_left, first, last, t, t_end, slab[worker],
                sums[worker],
            )  # fmt: skip
            for i in range(first, last):
                for j in range(t_end - t):
                    grad_input[item, i, t + j] = sums[worker, i - first, j]


@helper
def add_taps(grad_output, weight, stride, dilation, group, crop_left, first, last, t, t_end, slab, sums):
    """Add to sums[i - first, j] what channel i in [first, last) sent from t + j, through every tap."""
    _, group_channels, taps = weight.shape
    output_length = grad_output.shape[1]
    for channel in range(0, group_channels, slab.shape[0]):
        together = min(slab.shape[0], group_channels - channel)
        o = group * group_channels + channel
        for k in range(taps):
            start = k * dilation - crop_left  # the output that input 0 reaches
            begin = max(t, first_not_below(-start, stride))
            end = count_below(output_length - start, stride, t_end)
            if begin < end:
                l, size = start + begin * stride, end - begin
                for m in range(together):
                    copy_row(slab[m, :size], grad_output[o + m, l : l + (size - 1) * stride + 1 : stride])
                for i in range(first, last):
                    own = sums[i - first, begin - t : end - t]
                    if together == 4:
                        w = weight[i, channel : channel + 4, k]
                        add_four(own, w, slab[0, :size], slab[1, :size], slab[2, :size], slab[3, :size])
                    else:
                        for m in range(together):
                            add_scaled(own, weight[i, channel + m, k], slab[m, :size])


@kernel("r3 r3 i i i i i i i i w3")
def scatter(
    grad_output, weight, stride, dilation, phase_step, inverse, groups, crop_left, workers, stretches, grad_input
):  # fmt: skip
    """An input row has so many stretches; an output near a border adds to both sides, in the tasks that own them."""
    batch, in_channels, input_length = grad_input.shape
    _, group_channels, taps = weight.shape
    output_length = grad_output.shape[2]
    group_rows = in_channels // groups
    tap_step = stride // phase_step
    shift_step = dilation // phase_step
    tasks = batch * in_channels * stretches
    for worker in prange(workers):
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            rest, part = task // stretches, task % stretches
            item, i = rest // in_channels, rest % in_channels
            group = i // group_rows
            t_begin = part * input_length // stretches
            t_end = (part + 1) * input_length // stretches
            grad_input[item, i, t_begin:t_end] = 0
            for channel in range(group_channels):
                o = group * group_channels + channel
                for phase in range(0, stride, phase_step):
                    k_first = phase // phase_step * inverse % tap_step
                    phase_taps = count_below(taps - k_first, tap_step, taps)
                    shift = k_first * dilation // stride
                    # the positions q of this phase that lie in the output and come from [t_begin, t_end)
                    start = phase - crop_left
                    q_begin = max(t_begin + shift, first_not_below(-start, stride))
                    q_end = count_below(output_length - start, stride, t_end + shift + phase_taps * shift_step)
                    for q in range(q_begin, q_end):
                        # tap k_first + m·tap_step brings it from input q - shift - m·shift_step
                        m_begin = first_not_below(q - shift - (t_end - 1), shift_step)
                        m_end = count_below(q - shift - t_begin + 1, shift_step, phase_taps)
                        for m in range(m_begin, m_end):
                            w = weight[i, channel, k_first + m * tap_step]
                            grad_input[item, i, q - shift - m * shift_step] += (
                                w * grad_output[item, o, start + q * stride]
                            )
