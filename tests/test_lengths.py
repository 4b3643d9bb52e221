"""Lengths: a new one costs nothing, and samples are found beyond the reach of 32-bit indexes."""

import gc
import platform
import subprocess
import sys
import time

import numpy as np
import pytest
from numba.core import event

import numba_ctconv as nc

BEYOND = 2**31 + 12_345  # samples


GROWTH = """
import ctypes, gc, pathlib, tracemalloc
import numpy as np
import numba_ctconv as nc

def kilobytes():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return resident, tracemalloc.get_traced_memory()[0] / 1024

rng = np.random.default_rng(0)
layer = nc.ConvTranspose1d(48, 32, 8, stride=4, padding=2, algorithm={algorithm!r}, rng=rng)
x = rng.standard_normal((2, 48, 1400)).astype(np.float32)

def calls(lengths):
    for length in lengths:
        part = x[:, :, :length]
        out = layer(part)
        layer.backward(out, part)
        nc.conv_transpose1d_backward(out, part, layer.weight, stride=4, padding=2, algorithm={algorithm!r})

tracemalloc.start()
calls(range(600, 1000))  # fills what is kept of the latest shapes, which are few
before = kilobytes()
calls(range(1000, 1200))
print(*(after - earlier for earlier, after in zip(before, kilobytes())))
"""


def test_growing_lengths_cost_nothing(numba_threads):
    """Two hundred lengths, each new: nothing is compiled, and none takes longer than its neighbours.

    What counts is the time of the processor, which other processes do not take, where it is told finely enough. The
    time of a length is the shortest of several rounds; in the first, where a length is new, that of three neighbours.
    """
    fine = time.get_clock_info("thread_time").resolution < 1e-5
    clock = time.thread_time if fine else time.perf_counter
    numba_threads(1)
    rng = np.random.default_rng(0)
    layer = nc.ConvTranspose1d(48, 32, 8, stride=4, padding=2, rng=rng)
    x = rng.standard_normal((2, 48, 2000)).astype(np.float32)
    y = layer(x)
    layer.backward(y, x)
    made = event.RecordingListener()
    lengths, rounds = range(1000, 1200), 4
    seconds = np.empty((2, rounds, len(lengths)))
    gc.collect()
    gc.disable()
    try:
        with event.install_listener("numba:compile", made):
            for turn in range(rounds):
                for k, length in enumerate(lengths):
                    part = x[:, :, :length]
                    begin = clock()
                    out = layer(part)
                    middle = clock()
                    layer.backward(out, part)
                    seconds[:, turn, k] = middle - begin, clock() - middle
    finally:
        gc.enable()
    assert not made.buffer
    for first, own in zip(seconds[:, 0], seconds.min(axis=1), strict=True):
        for k, length in enumerate(lengths):
            neighbours = np.median(np.delete(own, k)[max(k - 4, 0) : k + 4])
            assert own[k] < 2 * neighbours, f"length {length}"
            assert first[max(k - 1, 0) : k + 2].min() < 5 * neighbours, f"length {length}, the first time"


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs Linux's /proc and glibc's malloc_trim"
)
@pytest.mark.parametrize("algorithm", ["auto", "gather"])
def test_growing_lengths_take_no_memory(algorithm):
    """In a new process, whose memory no other test has grown: neither NumPy's and LLVM's, nor Python objects."""
    script = GROWTH.format(algorithm=algorithm)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    resident, traced = map(float, done.stdout.split())
    assert traced < 20, f"{traced:.0f} KB of Python objects"
    assert resident < 300, f"{resident:.0f} KB"


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
