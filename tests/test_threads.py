"""Several Python threads at once, and Numba's number of threads left as it was found."""

import concurrent.futures
import os
import subprocess
import sys

import numba
import numpy as np
import pytest

import numba_ctconv as nc
from numba_ctconv.benchmark.workloads import CASES

MANY_AT_ONCE = """
import concurrent.futures, numpy as np, numba, numba_ctconv as nc
x, w = np.ones((1, 8, 400), np.float32), np.ones((8, 8, 4), np.float32)
expected = nc.conv_transpose1d(x, w, stride=2)
assert numba.threading_layer() == {layer!r}, numba.threading_layer()
def call(_):
    return np.array_equal(nc.conv_transpose1d(x, w, stride=2), expected)
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert all(pool.map(call, range(400)))
"""


def test_python_threads_share_the_kernels():
    problem = next(p for p in CASES if p.name == "stride_8_kernel_16")
    x, w, b, dy = problem.operands(np.float32, exact=False)

    def both(_):
        y = nc.conv_transpose1d(x, w, b, **problem.parameters)
        return y, nc.conv_transpose1d_backward(dy, x, w, **problem.backward_parameters)

    y, gradients = both(None)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for other_y, other in pool.map(both, range(64)):
            np.testing.assert_array_equal(other_y, y)
            for one, two in zip(gradients, other, strict=True):
                np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("layer", ["workqueue", "omp"])
def test_python_threads_under_each_threading_layer(layer):
    """Numba's "workqueue" aborts the process when two threads enter it; the package lets them in one by one."""
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer}
    command = [sys.executable, "-c", MANY_AT_ONCE.format(layer=layer)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"this machine has no {layer} threading layer")
    assert done.returncode == 0, done.stderr


def test_the_number_of_threads_is_left_as_it_was(numba_threads):
    numba_threads(1)
    nc.conv_transpose1d(np.ones((4, 8, 400)), np.ones((8, 8, 4)), stride=2)
    assert numba.get_num_threads() == 1
