"""Lengths: a new one costs nothing, and samples are found beyond the reach of 32-bit indexes."""

import gc
import resource
import sys
import time

import numpy as np
import pytest
from numba.core import event

import numba_ctconv as nc

BEYOND = 2**31 + 12_345  # samples


def test_growing_lengths_cost_nothing():
    """Two hundred lengths, each new: nothing is compiled, memory does not grow, none takes longer than its neighbours.

    The memory is that of the second half, which the allocator has met the sizes of, beyond that of the first.
    """
    rng = np.random.default_rng(0)
    layer = nc.ConvTranspose1d(48, 32, 8, stride=4, padding=2, rng=rng)
    x = rng.standard_normal((2, 48, 2000)).astype(np.float32)
    y = layer(x)
    layer.backward(y, x)
    made = event.RecordingListener()
    seconds, peaks = [], []
    gc.collect()
    gc.disable()
    try:
        with event.install_listener("numba:compile", made):
            for length in range(1000, 1200):
                part = x[:, :, :length]
                begin = time.perf_counter()
                out = layer(part)
                layer.backward(out, part)
                seconds.append(time.perf_counter() - begin)
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    finally:
        gc.enable()
    assert not made.buffer
    if sys.platform == "linux":
        assert peaks[-1] - peaks[99] < 1024  # kilobytes
    # of three neighbours the fastest: other processes slow one call down, a cost of the length all that are new
    windows = [min(seconds[k : k + 3]) for k in range(0, len(seconds), 3)]
    assert max(windows) < 10 * np.median(windows)


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """Two rows, which lie further apart than 2³¹ bytes, of more than 2³¹ samples in all; a file of holes takes no room.

    The last 600 samples of each are drawn, the others are zero.
    """
    path = tmp_path_factory.mktemp("far") / "samples"
    rows = np.memmap(path, np.float32, "w+", shape=(1, 2, BEYOND // 2 + 1))
    rows[..., -600:] = np.random.default_rng(5).standard_normal((1, 2, 600))
    yield rows
    path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="files of holes are left to Linux")
@pytest.mark.parametrize("algorithm", ["auto", "gather", "scatter"])
@pytest.mark.parametrize("groups", [1, 2])
def test_indexes_beyond_32_bits(far, algorithm, groups):
    """The ends of long rows, by crops that leave them alone: as the ends by themselves."""
    if algorithm == "scatter" and groups == 2:
        pytest.skip("as with one group")
    w = np.random.default_rng(6).standard_normal((2, 2 // groups, 6)).astype(np.float32)
    end = far[..., -600:]
    stride, kept = 4, 2000
    crop = far.shape[2] * stride - kept
    options = {"stride": stride, "groups": groups, "algorithm": algorithm}
    if algorithm != "scatter":  # which walks over all samples
        y = nc.conv_transpose1d(far, w, padding=(crop, 2), **options)
        expected = nc.conv_transpose1d(end, w, padding=(600 * stride - kept, 2), **options)
        np.testing.assert_array_equal(y, expected)
    # a negative crop: the samples of grad_output that the taps reach lie at its end
    before = far.shape[2] - 600
    x = np.random.default_rng(7).standard_normal((1, 2, 140)).astype(np.float32)
    long = nc.conv_transpose1d_backward(far, x, w, padding=(-before, -38), needs=("input", "weight"), **options)
    short = nc.conv_transpose1d_backward(end, x, w, padding=(0, -38), needs=("input", "weight"), **options)
    np.testing.assert_array_equal(long.input, short.input)
    np.testing.assert_array_equal(long.weight, short.weight)
