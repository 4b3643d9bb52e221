"""Which taps join an input sample to an output sample: the index arithmetic that the kernels share.

Input sample t and tap k meet at place t·stride + k·dilation of the full length; place u is output sample u - crop_left.
Divisions stand here, outside the kernels' inner loops, and round down for negative numbers too.
"""

from numba import cuda


@cuda.jit(device=True)
def pairs_at(u, taps, input_length, stride, dilation, phase_step, inverse):
    """The pairs (k, t) that meet at u: the first one and how many (none where 0 or less).

    The next pair is (k + stride/phase_step, t - dilation/phase_step).
    """
    q = u // stride
    phase = u - q * stride
    if phase % phase_step != 0:
        return 0, 0, 0
    tap_step = stride // phase_step
    input_step = dilation // phase_step
    k = phase // phase_step * inverse % tap_step
    t = q - (k * dilation - phase) // stride
    beyond = max(0, -((input_length - 1 - t) // input_step))  # pairs before it whose input is past the end
    count = min(-((k - taps) // tap_step), t // input_step + 1) - beyond
    return k + beyond * tap_step, t - beyond * input_step, count


@cuda.jit(device=True)
def steps_inside(start, step, steps, length):
    """The range of m in [0, steps) with 0 <= start + m·step < length; empty where the second is not the larger."""
    return max(0, -(start // step)), min(steps, -((start - length) // step))
