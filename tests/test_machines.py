"""Bits that do not depend on the machine: the same results from AVX-512, AVX2 and plain 128-bit code."""

import functools
import os
import platform
import subprocess
import sys

import pytest

DIGEST = """
import hashlib
import numpy as np
import numba_ctconv as nc
from numba_ctconv.benchmark.workloads import CASES, Problem, layer_problems
from numba_ctconv.cpu import target
digest = hashlib.sha256()
problems = (*CASES, *(p.shrunk(24, 40) for p in layer_problems(core=True)))
# a column more than vectors of 4, 8 and 16 lanes hold; phases of which 16 registers and 32 take different parts
problems += tuple(
    Problem(f"K{2 * stride} L{length}", 2 if length > 9 else 1, 40, 30, length, 2 * stride, stride)
    for stride in (2, 3, 7, 13) for length in (4, 8, 9, 16, 60)
)
for dtype in (np.float32, np.float64):
    for problem, exact in ((problem, exact) for problem in problems for exact in (True, False)):
        x, w, b, dy = problem.operands(dtype, exact=exact)
        y = nc.conv_transpose1d(x, w, b, **problem.forward_parameters)
        dx = nc.conv_transpose1d_backward(dy, x, w, **problem.backward_parameters, needs=("input",)).input
        digest.update(y.tobytes() + dx.tobytes())
print(target.vector_bytes(), digest.hexdigest())
"""
NARROWER = {
    32: {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2,+f16c,+lzcnt,+popcnt"},
    16: {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""},  # no FMA: a function of the C library rounds once
}


@functools.cache
def digest(**environment):
    """Width of the vectors, and a digest of outputs and input gradients of every named problem."""
    done = subprocess.run(
        [sys.executable, "-c", DIGEST], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    width, text = done.stdout.split()
    return int(width), text


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="compares instruction sets of x86-64")
@pytest.mark.parametrize("width", NARROWER)
def test_narrower_vectors_give_the_bits_of_this_machine(width):
    own, here = digest()
    if own < width:
        pytest.skip(f"this machine has vectors of {own} bytes")
    narrow, there = digest(**NARROWER[width])
    assert narrow == width
    assert there == here
