"""Every kernel compiled to PTX, which takes no GPU: it must type, stay in its dtype, and do no more than it should."""

import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

SCATTERING = {"forward.scatter", "grad_input.scatter", "grad_weight.scatter", "grad_weight.bias_scatter"}
GATHERING = {"forward.gather", "grad_input.gather", "grad_weight.gather", "grad_weight.bias_gather"}

# Compiles in a process of its own, since the one of the tests may run the simulator. Two things stand in for a GPU: the
# capability that helpers called by kernels are compiled for, and the claim that there is one.
COMPILE = """
import importlib, json, sys
from types import SimpleNamespace
from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
try:
    load_nvidia_dynamic_lib("nvvm")
    load_nvidia_dynamic_lib("nvrtc")
except DynamicLibNotFoundError:
    sys.exit(77)
from numba import cuda
from numba.cuda import dispatcher, types
capability = (int(sys.argv[1]), 0)
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=capability)
cuda.is_available = lambda: True
ptx = {}
for kind in (types.float16, types.bfloat16, types.float32, types.float64):
    a, v, i = types.Array(kind, 3, "A"), types.Array(kind, 1, "A"), types.int64
    kernels = {
        "forward.gather": (a, a, v, i, i, i, i, i, i, a),
        "forward.scatter": (a, a, i, i, i, i, a),
        "grad_input.gather": (a, a, i, i, i, i, a),
        "grad_input.scatter": (a, a, i, i, i, i, i, i, a),
        "grad_weight.gather": (a, a, i, i, i, i, a),
        "grad_weight.scatter": (a, a, i, i, i, i, a),
        "grad_weight.bias_gather": (a, v),
        "grad_weight.bias_scatter": (a, v),
        "fill.fill": (v, a),
        "fill.copy": (a, a),
    }
    for name, signature in kernels.items():
        if "scatter" in name and kind in (types.float16, types.bfloat16):
            continue
        module, function = name.split(".")
        kernel = getattr(importlib.import_module("numba_ctconv.cuda." + module), function)
        ptx[f"{name} {kind}"] = cuda.compile_ptx(kernel.py_func, signature, cc=capability)[0]
print(json.dumps(ptx))
"""


@pytest.fixture(scope="module", params=[8, 9], ids=lambda major: f"sm_{major}0")
def ptx(request):
    """PTX by kernel and dtype."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    command = [sys.executable, "-W", "error", "-c", COMPILE, str(request.param)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 77:
        pytest.skip("the compilers of the CUDA toolkit (NVVM, NVRTC) are not installed: numba-cuda[cu13]")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def innermost_loop(code, instruction):
    """The lines of the shortest loop around an instruction: from a label to a later branch back to it."""
    lines = code.splitlines()
    labels = {line.split(":")[0].strip(): n for n, line in enumerate(lines) if re.match(r"\$L__BB\S+:", line)}
    at = [n for n, line in enumerate(lines) if instruction in line]
    assert at
    loops = []
    for n, line in enumerate(lines):
        target = re.search(r"\bbra(?:\.uni)?\s+(\$L__BB\w+)", line)
        if target and labels[target[1]] <= at[-1] <= n:
            loops.append(lines[labels[target[1]] : n + 1])
    return min(loops, key=len)


def test_every_kernel_compiles_for_every_dtype(ptx):
    assert {name.split()[0] for name in ptx} == SCATTERING | GATHERING | {"fill.fill", "fill.copy"}
    assert len(ptx) == 20 + 12  # which of halves leaves out the scatter kernels


def test_halves_are_summed_in_float32(ptx):
    for name, code in ptx.items():
        if name.split()[0] in GATHERING and name.endswith(("float16", "bfloat16")):
            assert re.search(r"\b(?:fma|add)\.(?:rn\.)?(?:ftz\.)?f32", code), name
            assert not re.search(r"\b(?:fma|add|mul)\.\S*(?:bf16|f16)\b", code), name


def test_float32_stays_float32(ptx):
    for name, code in ptx.items():
        if name.endswith("float32"):
            assert ".f64" not in code, name  # registers can be named %f64


def test_only_scatter_is_atomic(ptx):
    for name, code in ptx.items():
        atomics = re.findall(r"\b(?:atom|red)\.\S+", code.replace("shared", ""))
        assert bool(atomics) == (name.split()[0] in SCATTERING), (name, atomics)


def test_products_are_fused_and_indices_not_divided_in_the_inner_loop(ptx):
    for name, code in ptx.items():
        if name.endswith(("float32", "float64")) and name.split()[0] in GATHERING - {"grad_weight.bias_gather"}:
            loop = innermost_loop(code, f"fma.rn.f{name[-2:]}")
            assert not [line for line in loop if re.search(r"\b(?:div|rem)\.", line)], name


def test_helpers_are_inlined(ptx):
    for name, code in ptx.items():
        if name.endswith("bfloat16"):  # its conversions are NVIDIA's, and linked
            continue
        assert "call" not in re.findall(r"\bcall\b", code), name
