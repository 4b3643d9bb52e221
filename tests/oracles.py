"""What results are held against, beside numba_ctconv.reference: the textbook way, by zero-stuffing and np.convolve."""

import numpy as np


def stuffed_convolution(x, w, b, stride=1, padding=0, output_padding=0, groups=1, dilation=1, output_size=None):
    """The output (N, C_out, L_out) in float64: input and taps stretched with zeros, convolved, summed, cropped."""
    batch, in_channels, input_length = x.shape
    left, right = padding if isinstance(padding, tuple) else (padding, padding - output_padding)
    rows_in, rows_out = in_channels // groups, w.shape[1]
    full = (input_length - 1) * stride + dilation * (w.shape[2] - 1) + 1
    y = np.zeros((batch, rows_out * groups, full))
    for n in range(batch):
        for i in range(in_channels):
            samples = np.zeros((input_length - 1) * stride + 1)
            samples[::stride] = x[n, i]
            for j in range(rows_out):
                taps = np.zeros(dilation * (w.shape[2] - 1) + 1)
                taps[::dilation] = w[i, j]
                y[n, i // rows_in * rows_out + j] += np.convolve(samples, taps)
    if output_size is not None:
        right = full - left - output_size
    y = np.pad(y, ((0, 0), (0, 0), (max(-left, 0), max(-right, 0))))
    y = y[..., max(left, 0) : y.shape[2] - max(right, 0)]
    return y if b is None else y + np.asarray(b, np.float64)[:, None]


def inner(a, b):
    """<a, b> in float64; exact where all terms are small integers."""
    return float(np.sum(np.asarray(a, np.float64) * np.asarray(b, np.float64)))
