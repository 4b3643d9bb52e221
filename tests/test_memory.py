"""Working memory on the CPU: how far the peak of a new process rises above its arrays and a packed copy of weights."""

import os
import pathlib
import platform
import subprocess
import sys

import pytest

LARGEST = 8  # MB of working memory a thread
CONTIGUOUS = "np.ones({}, np.float32)"
TIME_FIRST = f"{CONTIGUOUS}.reshape({{}}[0], {{}}[2], {{}}[1]).transpose(0, 2, 1)"
LAYERS = {  # input, weight, parameters, and how an array of a shape lies in memory
    "long": ((1, 64, 2_100_000), (64, 32, 4), {"stride": 2, "padding": 1}, CONTIGUOUS),
    "long, time first": (
        (1, 64, 2_100_000),
        (64, 32, 4),
        {"stride": 2, "padding": 1},
        TIME_FIRST,
    ),
    "depthwise": ((1, 64, 1_400_000), (64, 1, 12), {"stride": 2, "groups": 64}, CONTIGUOUS),
    "wide kernel": ((1, 2049, 60), (2049, 1, 4096), {"stride": 1024}, CONTIGUOUS),
    "wide kernel, stride 1": ((1, 2049, 60), (2049, 1, 4096), {}, CONTIGUOUS),
    "wide kernel, dilated": ((1, 2049, 40), (2049, 2, 4096), {"stride": 1000, "dilation": 3}, CONTIGUOUS),
    "wide kernel, batch": ((16, 2049, 8), (2049, 1, 4096), {"stride": 1024}, CONTIGUOUS),
}
SCRIPT = """
import ctypes, pathlib
import numba, numpy as np
import numba_ctconv as nc

def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

def growth(call):
    # what was freed goes back to the system, else work in its place would not show; then the peak starts anew
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    assert status("VmHWM") - before < 1, "the peak did not start anew"
    call()
    return status("VmHWM") - before

numba.set_num_threads({threads})
x, w = {x}, np.ones({w}, np.float32)
few = x[:, :, :9]
nc.conv_transpose1d_backward(nc.conv_transpose1d(few, w, **{parameters}), few, w, **{parameters})  # compiles
length = nc.output_length(x.shape[2], w.shape[2], **{output_parameters})
shape = (x.shape[0], w.shape[1] * {groups}, length)
y, dx, dw = {y}, np.ones_like(x), np.ones_like(w)
layer = nc.ConvTranspose1d(x.shape[1], shape[1], w.shape[2], bias=False, **{parameters})
layer.weight = w
for call in (
    lambda: np.ones(2**21),  # 16 MB: what the measurement has to see
    lambda: nc.conv_transpose1d(x, w, out=y, **{parameters}),
    lambda: nc.conv_transpose1d_backward(y, x, w, needs=("input",), out=nc.Gradients(dx, None, None), **{parameters}),
    lambda: nc.conv_transpose1d_backward(y, x, w, needs=("weight",), out=nc.Gradients(None, dw, None), **{parameters}),
    lambda: layer(x, out=y),
    lambda: layer(x, out=y),
):
    print(growth(call))
print(w.nbytes / 2**20)
"""


@pytest.fixture
def clean_peak():
    """Skip where the peak of a process can't be told apart from what it has used before."""
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        pytest.skip("needs Linux's /proc and glibc's malloc_trim")
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not let a process start its peak anew")
    lines = pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    if available < 2.5 * 2**20:
        pytest.skip(f"needs 2.5 GB of free memory, {available / 2**20:.1f} are there")


@pytest.mark.usefixtures("clean_peak")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_working_memory_is_bounded(name, threads):
    """No column matrix, no zero-stuffed input, no copy of an array: with a gigabyte of them, and with 4096 taps."""
    x, w, parameters, lies = LAYERS[name]
    script = SCRIPT.format(
        threads=threads,
        x=lies.replace("{}", str(x)),
        w=w,
        y=lies.replace("{}", "shape"),
        parameters=parameters,
        output_parameters={key: value for key, value in parameters.items() if key != "groups"},
        groups=parameters.get("groups", 1),
    )
    environment = os.environ | {"NUMBA_NUM_THREADS": "2"}
    environment.pop("NUMBA_DEFAULT_NUM_THREADS", None)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen, forward, grad_input, grad_weight, first, second, weights = map(float, done.stdout.split())
    assert 15 < seen < 17
    most = LARGEST * threads
    packed = 1.01 * weights  # the rows of the last tile are padded
    assert forward < most + packed
    assert grad_input < most + packed
    assert grad_weight < most
    assert first < most + packed
    assert second < most  # the layer keeps its copy
