"""Forward on the CPU: y[n, o, q·stride + r - crop_left] = bias[o] + Σ_i Σ_{k: r_k = r} w[i, o, k]·x[i, q - h_k].

Two kernels, called by the engine with its scratch memory; they neither allocate nor check. No two tasks write the same
element, and each element is summed in one order, so neither threads nor tiles change a bit.

gather   a task owns a tile of outputs (rows × phases × positions) and collects what reaches them; the innermost loop
         runs over the positions of one phase, contiguous in scratch memory whatever the stride.
scatter  a task owns a stretch of an output row, to which every input sample adds its products.
"""

from numba import prange

from .compilation import helper, kernel
from .rows import add_four, add_scaled, copy_row, count_below, first_not_below


@kernel("r3 r3 r1 i i i i i i i c4 c3 w3")
def gather(input, weight, bias, stride, dilation, phase_step, inverse, groups, crop_left, workers, sums, slab, output):
    """Scratch: sums (workers, rows, phases, stretch), slab (workers, channels together, stretch and shifts)."""
    _, rows, phases, stretch = sums.shape
    group_rows = weight.shape[1]
    row_tiles = -(-group_rows // rows)
    phase_tiles = -(-stride // phases)
    q_first = crop_left // stride
    q_end = (crop_left + output.shape[2] - 1) // stride + 1
    stretches = -(-(q_end - q_first) // stretch)
    tasks = output.shape[0] * groups * row_tiles * phase_tiles * stretches
    for worker in prange(workers):
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            rest, q_tile = task // stretches, task % stretches
            rest, phase_tile = rest // phase_tiles, rest % phase_tiles
            rest, row_tile = rest // row_tiles, rest % row_tiles
            item, group = rest // groups, rest % groups
            row, phase, q = row_tile * rows, phase_tile * phases, q_first + q_tile * stretch
            tile = (min(rows, group_rows - row), min(phases, stride - phase), min(stretch, q_end - q))
            channel = group * group_rows + row
            start_from_bias(bias, channel, tile, sums[worker])
            add_taps(
                input[item], weight, stride, dilation, phase_step, inverse, groups, group, row, phase, q, tile,
                slab[worker], sums[worker],
            )  # fmt: skip
            store_phases(sums[worker], tile, channel, q * stride + phase - crop_left, stride, output[item])


@helper
def start_from_bias(bias, channel, tile, sums):
    rows, phases, stretch = tile
    for c in range(rows):
        for p in range(phases):
            sums[c, p, :stretch] = bias[channel + c] if bias.size else 0


@helper
def add_taps(
    input, weight, stride, dilation, phase_step, inverse, groups, group, row, phase, q, tile, slab, sums
):  # fmt: skip
    """Add to sums[c, p, j] what reaches channel row + c of the group, phase + p, position q + j."""
    rows, phases, stretch = tile
    group_channels = input.shape[0] // groups
    input_length = input.shape[1]
    taps = weight.shape[2]
    tap_step = stride // phase_step
    t_first = max(q - (taps - 1) * dilation // stride, 0)  # the inputs that any of the taps meets
    t_end = min(q + stretch, input_length)
    if t_first >= t_end:
        return
    for channel in range(group * group_channels, (group + 1) * group_channels, slab.shape[0]):
        together = min(slab.shape[0], (group + 1) * group_channels - channel)
        for m in range(together):
            copy_row(slab[m, : t_end - t_first], input[channel + m, t_first:t_end])
        for c in range(rows):
            for p in range(-phase % phase_step, phases, phase_step):
                first_tap = (phase + p) // phase_step * inverse % tap_step
                for k in range(first_tap, taps, tap_step):
                    shift = k * dilation // stride
                    q_begin = max(q, shift)  # the positions whose input q - shift exists
                    q_end = min(q + stretch, input_length + shift)
                    if q_begin < q_end:
                        a, b = q_begin - shift - t_first, q_end - shift - t_first
                        own = sums[c, p, q_begin - q : q_end - q]
                        if together == 4:
                            w = weight[channel : channel + 4, row + c, k]
                            add_four(own, w, slab[0, a:b], slab[1, a:b], slab[2, a:b], slab[3, a:b])
                        else:
                            for m in range(together):
                                add_scaled(own, weight[channel + m, row + c, k], slab[m, a:b])


@helper
def store_phases(sums, tile, channel, l, stride, output):
    """Interleave: sums[c, p, j] is output sample l + j·stride + p of channel + c, where that exists."""
    rows, phases, stretch = tile
    for c in range(rows):
        for p in range(phases):
            start = l + p
            for j in range(first_not_below(-start, stride), count_below(output.shape[1] - start, stride, stretch)):
                output[channel + c, start + j * stride] = sums[c, p, j]


@kernel("r3 r3 r1 i i i i i i w3")
def scatter(input, weight, bias, stride, dilation, groups, crop_left, workers, stretches, output):
    """A row of output has so many stretches; an input near a border adds to both sides, in the tasks that own them."""
    batch, out_channels, output_length = output.shape
    group_rows, taps = weight.shape[1], weight.shape[2]
    group_channels = input.shape[1] // groups
    reach = dilation * (taps - 1)
    tasks = batch * out_channels * stretches
    for worker in prange(workers):
        for task in range(worker * tasks // workers, (worker + 1) * tasks // workers):
            rest, part = task // stretches, task % stretches
            item, o = rest // out_channels, rest % out_channels
            group, row = o // group_rows, o % group_rows
            l_begin = part * output_length // stretches
            l_end = (part + 1) * output_length // stretches
            for l in range(l_begin, l_end):
                output[item, o, l] = bias[o] if bias.size else 0
            t_begin = first_not_below(l_begin + crop_left - reach, stride)
            t_end = count_below(l_end + crop_left, stride, input.shape[2])
            for channel in range(group * group_channels, (group + 1) * group_channels):
                for t in range(t_begin, t_end):
                    start = t * stride - crop_left  # where tap 0 lands
                    k_begin = first_not_below(l_begin - start, dilation)
                    k_end = count_below(l_end - start, dilation, taps)
                    for k in range(k_begin, k_end):
                        output[item, o, start + k * dilation] += input[item, channel, t] * weight[channel, row, k]
