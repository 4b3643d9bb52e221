"""Every kernel compiled to PTX, which takes no GPU: it must type, stay in its dtype, and do no more than it should."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

SCATTERING = {"forward.scatter", "grad_input.scatter", "grad_weight.scatter", "grad_weight.bias_scatter"}
GATHERING = {"forward.gather", "grad_input.gather", "grad_weight.gather", "grad_weight.bias_gather"}

# Compiles in a process of its own, since the one of the tests may run the simulator. Two things stand in for a GPU: the
# capability that helpers called by kernels are compiled for, and the claim that there is one.
PREPARE = """
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
"""

COMPILE = """
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
"""


# Every tile that there is, so all that a layer and a length can ask for. The weight gradient of halves is stored in
# their dtype or, where it is summed in parts, in float32.
TILED = """
from numba_ctconv.cuda import arithmetic, depthwise, depthwise_weight, packing, parts, product, row_cuts
from numba_ctconv.cuda import tile, tiles, weight_product
def keep(name, kernel, *signature):
    bounds = kernel.targetoptions["launch_bounds"]
    ptx[name] = cuda.compile_ptx(kernel.py_func, signature, cc=capability, launch_bounds=bounds)[0]
i = types.int64
integers = types.Array(i, 1, "A")
places = types.NamedUniTuple(i, len(tiles.Sizes._fields), tiles.Sizes)
cuts = types.NamedUniTuple(i, len(tiles.WeightSizes._fields), tiles.WeightSizes)
back = types.NamedUniTuple(i, len(row_cuts.BackCut._fields), row_cuts.BackCut)
cut = types.NamedUniTuple(i, len(row_cuts.Cut._fields), row_cuts.Cut)
weight_cut = types.NamedUniTuple(i, len(row_cuts.WeightCut._fields), row_cuts.WeightCut)
for own in arithmetic.ALL:
    kind = getattr(types, own.name.replace("tf32", "float32"))
    word = getattr(types, own.word.name)
    a, bias, panels = types.Array(kind, 3, "A"), types.Array(kind, 1, "A"), types.Array(word, 1, "A")
    sums = types.Array(word, 4, "A")
    keep(f"pack {own.name}", packing.pack(own), a, integers, *[i] * 11, panels)
    if own.name != "tf32":
        keep(f"depthwise forward {own.name}", depthwise.forward(own), a, a, bias, integers, cut, a)
        keep(f"depthwise grad_input {own.name}", depthwise.grad_input(own), a, a, back, a)
        keep(f"depthwise grad_weight {own.name}", depthwise_weight.grad_weight(own), a, a, integers, weight_cut, sums)
        keep(f"add_parts {own.name}", parts.add_parts, sums, integers, bias, i, i, i, a)
    for rows, shapes in tile.tiles_of(own).items():
        for each in shapes:
            name = f"{rows} x {each.columns}"
            keep(f"product {name} {own.name}", product.product(each, own), a, panels, integers, bias, places, sums, a)
    for rows, shapes in tile.weight_tiles_of(own).items():
        for each in shapes:
            name = f"{rows} x {each.columns}"
            for into in {kind, word}:
                run = weight_product.weight_product(each, own)
                keep(f"weight_product {name} into {into} {own.name}", run, a, a, cuts, types.Array(into, 4, "A"))
"""
MOST_SPECIALISATIONS = 60
MULTIPLIES = {
    "tf32": "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32",
    "float16": "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32",
    "bfloat16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
}


def compiled(kernels, major):
    """PTX by name, made by a process of its own."""
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}
    script = f"{PREPARE}{kernels}\nprint(json.dumps(ptx))"
    command = [sys.executable, "-W", "error", "-c", script, str(major)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode == 77:
        pytest.skip("the compilers of the CUDA toolkit (NVVM, NVRTC) are not installed: numba-cuda[cu13]")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


capabilities = pytest.fixture(scope="module", params=[8, 9], ids=lambda major: f"sm_{major}0")


@capabilities
def ptx(request):
    """PTX of the explicit loops, by kernel and dtype."""
    return compiled(COMPILE, request.param)


@capabilities
def tiled(request):
    """The capability, and PTX of the tiled kernels, by kernel, tile and dtype."""
    return request.param, compiled(TILED, request.param)


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


def test_tiled_kernels_stay_in_their_dtype_and_need_no_atomics(tiled):
    _, codes = tiled
    assert 0 < len(codes) <= MOST_SPECIALISATIONS
    for name, code in codes.items():
        assert not re.search(r"(?<![.\w])(?:atom|red)\.", code), name  # bar.red is a barrier
        assert name.endswith("float64") or ".f64" not in code, name
        assert "call" not in re.findall(r"\bcall\b", code), name
        if "product" in name:
            instruction = MULTIPLIES.get(name.split()[-1], f"fma.rn.f{name[-2:]}")
            assert instruction in code, name
            for other in set(MULTIPLIES.values()) - {instruction}:
                assert other not in code, name
            assert "cp.async" in code, name
        if "depthwise" in name and not name.endswith("float64"):
            assert "fma.rn.f32" in code, name


def test_loads_of_parts_are_under_way_together(tiled):
    """None waits for a sum or a branch: parts lie far apart."""
    _, codes = tiled
    for name, code in codes.items():
        if name.startswith("add_parts"):
            loop = innermost_loop(code, "@p ld.global")
            loads = [n for n, line in enumerate(loop) if "ld.global" in line]
            sums = [n for n, line in enumerate(loop) if re.search(r"\badd\.(?:rn\.)?f(?:32|64)", line)]
            assert len(loads) == len(sums) == 16
            assert max(loads) < min(sums)
            assert [n for n, line in enumerate(loop) if re.search(r"\bbra\b", line)] == [len(loop) - 1]


def test_tensor_cores_take_rounded_operands(tiled):
    _, codes = tiled
    for name, code in codes.items():
        assert ("cvt.rna.tf32.f32" in code) == (name.endswith(" tf32")), name


def test_tiled_kernels_assemble_without_spills(tiled, tmp_path):
    """At the registers that the launch bounds leave them, so that as many blocks as planned share a multiprocessor."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("ptxas is not installed: it comes with the CUDA toolkit")
    major, codes = tiled
    told = subprocess.run([ptxas, "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", told)
    newest = (int(release[1]) - 4, int(release[2]))  # the version of PTX that a toolkit came with
    for name, code in codes.items():
        version = re.search(r"\.version (\d+)\.(\d+)", code)
        known = min(newest, (int(version[1]), int(version[2])))  # the kernels use nothing as new
        source = tmp_path / "kernel.ptx"
        source.write_text(code.replace(version[0], f".version {known[0]}.{known[1]}"))
        command = [ptxas, "-v", f"-arch=sm_{major}0", str(source), "-o", str(tmp_path / "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (name, done.stderr)
        assert " 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in done.stderr, (name, done.stderr)
