"""The engine on Numba's real arrays, streams and launches, where there is no GPU: on a driver that runs no kernel.

The simulator replaces Numba's driver layer; here it is the real one, over idle_driver.c, and kernels go through the
compiler. Results mean nothing, so nothing looks at them: what shows is a call that Numba or the driver would refuse.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")

SOURCE = pathlib.Path(__file__).with_name("idle_driver.c")
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the driver is built for Linux"),
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler to build the driver with"),
    pytest.mark.skipif(os.environ.get("NUMBA_ENABLE_CUDASIM") != "1", reason="there is a GPU"),
]

PREPARE = """
import ctypes, json, sys
from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
try:
    for name in ("nvvm", "nvrtc", "nvJitLink"):
        load_nvidia_dynamic_lib(name)
except DynamicLibNotFoundError:
    sys.exit(77)
import numpy as np
from numba_ctconv.benchmark import checking, device, verification
from numba_ctconv.benchmark.formats import FORMATS
from numba_ctconv.benchmark.progress import Progress
from numba_ctconv.benchmark.workloads import CASES, Problem
checking.Expected.first_mismatch = lambda *_, **__: None
driver = ctypes.CDLL("libcuda.so.1")
def count(name):
    return ctypes.c_long.in_dll(driver, f"idle_{name}").value
told = {}
"""

VERIFY = """
outcomes = list(verification.verify("cuda", Progress(), among=verification.problems()[::4]))
told = {"calls": len(outcomes), "refused": [str(o) for o in outcomes if o.wrong], "launches": count("launches")}
"""

BENCH = """
from numba_ctconv.benchmark import commands, on_gpu, selection, timing
from numba_ctconv.cli import main
row = {"id": "a/plain", "cin": 4, "cout": 2, "k": 4, "s": 2, "p": 1, "op": 0, "g": 1, "d": 1, "bias": True}
row |= {"core": True, "train": [2, 3], "infer": [1, 5], "src": ""}
selection.layers = lambda: (row,)
timing.BLOCK_SECONDS = 1e-4
run = ["bench", "--device", "cuda", "--raise", "1e-5", "--blocks", "2", "--peer", "none", "--pass", "forward,gradients"]
run += ["--style", "function", "--style", "layer out", "--json", sys.argv[1], "--algorithm", "auto"]
for more in (["float32", "--algorithm", "tiled"], ["float16"], ["bfloat16"]):
    told[more[0]] = main([*run, "--dtype", *more])
"""

OUT = """
import numba_ctconv as nc
problem = Problem("steady", 2, 6, 4, 9, 10, stride=5, padding=3, output_padding=1, groups=2)
for name in FORMATS:
    memory = device.DeviceArrays(FORMATS[name])
    x, w, b, dy = map(memory.put, problem.operands(FORMATS[name].host))
    out = memory.empty(problem.operands().grad_output.shape, None)
    gradients = nc.Gradients(*(memory.empty(a.shape, None) for a in (x, w, b)))
    def call():
        nc.conv_transpose1d(x, w, b, **problem.forward_parameters, out=out)
        nc.conv_transpose1d_backward(dy, x, w, **problem.backward_parameters, out=gradients)
    call()
    before = [count(kind) for kind in ("allocations", "waits", "launches")]
    call()
    told[name] = [count(kind) - n for kind, n in zip(("allocations", "waits", "launches"), before)]
"""


CAPTURED = """
from cuda.bindings import driver as bindings
from numba import cuda
import numba_ctconv as nc
from numba_ctconv.cuda import arithmetic, launches, packing
modes = bindings.CUstreamCaptureMode
memory = device.DeviceArrays(FORMATS["float32"])
problem = Problem("kept", 2, 6, 4, 9, 10, stride=5)
x, w, b, dy = problem.operands()
layer = nc.ConvTranspose1d.from_state_dict(
    {"weight": w, "bias": b}, **problem.parameters, device="cuda", algorithm="tiled"
)
x, out = memory.put(x), memory.empty(dy.shape, None)
stream, other = cuda.stream(), cuda.stream()
pack, packed, run = packing.pack(arithmetic.FLOAT32), [], launches.run
launches.run = lambda prepared, *given: packed.append(prepared.kernel is pack) or run(prepared, *given)
pending = ctypes.c_long.in_dll(driver, "idle_pending")
def call(on=stream):
    packed.clear()
    before = count("waits")
    layer(x, out=out, stream=on)
    return [sum(packed), count("waits") - before, pending.value]
def captured(mode):
    begun = bindings.cuStreamBeginCapture(int(stream), mode)
    try:
        return call()
    finally:
        bindings.cuStreamEndCapture(int(stream))
call()
layer.weight = layer.state_dict()["weight"]  # compiled, and no longer packed
told["packs in a graph"] = captured(modes.CU_STREAM_CAPTURE_MODE_GLOBAL)
told["packs after it"] = call()
pending.value = 1
told["another stream"] = call(other)
for mode in modes:
    layer.weight = layer.state_dict()["weight"]
    pending.value = 0
    call()
    pending.value = 1
    told[mode.name] = captured(mode)
    told["after " + mode.name] = call()
    told["again in " + mode.name] = captured(mode)
"""


SPLIT = """
from cuda.bindings import driver as bindings
from numba import cuda
import numba_ctconv as nc
from numba_ctconv.cuda import launches, parts, tiles
problem = Problem("split", 1, 600, 8, 2, 4, stride=2)
started, lent, added = launches.run, [], []
def run(prepared, queue, *given):
    added.append(prepared.kernel is parts.add_parts)
    lent.extend(view.address for view in given if len(view.shape) == 4 and view.size and not added[-1])
    started(prepared, queue, *given)
launches.run = run
stream, other = cuda.stream(), cuda.stream()
memory = device.DeviceArrays(FORMATS["float32"])
layer = nc.ConvTranspose1d.from_state_dict(
    {"weight": problem.operands().weight, "bias": problem.operands().bias}, stride=2, device="cuda", algorithm="tiled"
)
def call(of, on=stream):
    x, out = memory.put(of.operands().input), memory.empty(of.operands().grad_output.shape, None)
    added.clear()
    lent.clear()
    before = [count(kind) for kind in ("allocations", "waits")]
    layer(x, out=out, stream=on)
    after = [count(kind) for kind in ("allocations", "waits")]
    return [added.count(True), [b - a for a, b in zip(before, after)], list(lent), len(parts.add_parts.overloads)]
longer = problem.with_length(1, 20_000)
for name, of in (("long", longer), ("short", problem), ("again", problem)):
    told[name] = call(of)
told["other stream"] = call(problem, other)
x, out = memory.put(problem.operands().input), memory.empty(problem.operands().grad_output.shape, None)
lent.clear()
bindings.cuStreamBeginCapture(int(stream), bindings.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL)
try:
    layer(x, out=out, stream=stream)
finally:
    bindings.cuStreamEndCapture(int(stream))
told["graph"] = list(lent)
told["after"] = call(problem)
told["kept"] = [view.address for view in layer._kept["of graphs"]]
"""


WORDS = """
import threading
from numba import cuda
from numba_ctconv.cuda import arrays, forward, launches, product, row_cuts, tile, tiles
from numba_ctconv.cuda.arithmetic import FLOAT32
from numba_ctconv.cuda.launch import Configuration
from numba_ctconv.cuda.queues import Queue
from numba_ctconv.geometry import plan
x, w, y = (cuda.device_array(shape, np.float32) for shape in ((3, 4, 50), (4, 2, 3), (3, 2, 60)))
sums = cuda.device_array((2, 3, 4, 5), np.float32)
x, bias, none = x[:, ::2, 5:45], cuda.device_array(2, np.float32), cuda.device_array(0, np.float32)
table, sizes = cuda.device_array(9, np.int64), tiles.Sizes(*range(100, 100 + len(tiles.Sizes._fields)))
own = tile.FMA_TILES[4][16][-1]
others = [cuda.device_array_like(array) for array in (np.empty((3, 4, 50), np.float32), w, bias, y)]
launched = {
    "gather": (forward.gather, 32, (x, w, bias, 2, 1, -7, 0, 2**40, 1, y)),
    "gather elsewhere": (
        forward.gather, 32, (others[0][:, ::2, 5:45], *others[1:3], 2, 1, -7, 0, 2**40, 1, others[3])
    ),
    "without bias": (forward.gather, 32, (x, w, none, 2, 1, 1, 0, 3, 1, y)),
    "product": (product.product(own, FLOAT32), own.threads, (x, bias, table, bias, sizes, sums, y)),
}
asked = ctypes.c_long.in_dll(driver, "idle_asked")
def words():
    return list((ctypes.c_int64 * asked.value).in_dll(driver, "idle_arguments"))
def size(argument):
    if hasattr(argument, "shape"):
        return 5 + 2 * len(argument.shape)
    return len(argument) if isinstance(argument, tuple) else 1
for name, (kernel, threads, arguments) in launched.items():
    seen = [arrays.view(arrays.memory_of(a), a) if hasattr(a, "shape") else a for a in arguments]
    asked.value = sum(map(size, arguments))
    before = count("launches")
    given = (kernel, Configuration(200, threads), Queue(0, 0), *seen)
    worker = threading.Thread(target=launches.start, args=given)  # which has no context yet
    worker.start()
    worker.join()
    straight = words()
    kernel[200, threads](*arguments)
    told[name] = [straight, words(), count("launches") - before]
"""

FIRST = """
from cuda.bindings import driver as bindings
from numba import cuda
import numba_ctconv as nc
modes = bindings.CUstreamCaptureMode
memory = device.DeviceArrays(FORMATS["float32"])
stream = cuda.stream()
for groups, strides in ((1, (5, 6, 7)), (6, (2, 3, 4))):
    for mode, stride in zip(modes, strides):
        problem = Problem("first", 2, 6, 6, 9, 10, stride=stride, groups=groups)
        x, w, b, dy = problem.operands()
        layer = nc.ConvTranspose1d.from_state_dict(
            {"weight": w, "bias": b}, **problem.parameters, device="cuda", algorithm="tiled"
        )
        out, x, dy = memory.empty(dy.shape, None), memory.put(x), memory.put(dy)
        gradients = nc.Gradients(*(memory.empty(a.shape, None) for a in (x, w, b)))
        before = count("launches")
        bindings.cuStreamBeginCapture(int(stream), mode)
        try:
            layer(x, out=out, stream=stream)
            layer.backward(dy, x, out=gradients, stream=stream)
        finally:
            bindings.cuStreamEndCapture(int(stream))
        told[f"{groups} {mode.name}"] = count("launches") - before
"""

ACCURACY = """
from numba_ctconv.benchmark import accuracy
with np.errstate(all="ignore"):
    found = list(accuracy.measure(accuracy.chosen(["gpt_sovits_v2/up3"]), Progress()))
told = {"kinds": [[name in record for name in accuracy.KINDS] for record in found], "launches": count("launches")}
"""


@pytest.fixture(scope="module")
def on_idle_driver(tmp_path_factory):
    """Run a program over the driver; what it told."""
    folder = tmp_path_factory.mktemp("driver")
    library = folder / "libcuda.so.1"
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-w", str(SOURCE), "-o", str(library), "-ldl"], check=True, timeout=60
    )
    root = pathlib.Path(__file__).parents[2]
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    libraries = [str(folder), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(libraries), "PYTHONPATH": os.pathsep.join(paths)}
    del environment["NUMBA_ENABLE_CUDASIM"]

    def run(program, *arguments):
        text = f"{PREPARE}{program}\nprint(json.dumps(told))"
        command = [sys.executable, "-W", "error", "-c", text, *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
        if done.returncode == 77:
            pytest.skip("NVVM, NVRTC or nvJitLink is not installed")
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def test_no_call_of_any_format_is_refused(on_idle_driver):
    told = on_idle_driver(VERIFY)
    assert told["refused"] == []
    assert told["calls"] > 400
    assert told["launches"] > told["calls"] / 2  # some results are empty


def test_a_call_into_arrays_neither_allocates_nor_waits(on_idle_driver):
    for allocations, waits, launches in on_idle_driver(OUT).values():
        assert (allocations, waits) == (0, 0)
        assert launches == 4


def test_a_graph_takes_a_weight_that_is_packed_or_packs_its_own(on_idle_driver):
    """By [kernels that pack, waits of the host, whether the event is still to come]."""
    told = on_idle_driver(CAPTURED)
    assert told.pop("packs in a graph") == [1, 0, 0]
    assert told.pop("packs after it") == [1, 0, 0]
    assert told.pop("another stream") == [0, 0, 1]
    assert len(told) == 3 * 3
    for when, what in told.items():
        assert what == ([0, 1, 0] if when.startswith("CU_") else [0, 0, 0]), when


def test_parts_lie_in_memory_that_a_stream_lends_or_a_graph_keeps(on_idle_driver):
    """By [launches that add parts, [allocations, waits], where the parts lie, dtypes that adding is compiled for]."""
    told = on_idle_driver(SPLIT)
    assert told["long"][0] == 0
    assert told["long"][3] == 1  # compiled, though it is the next length that adds
    adds, (allocations, waits), parts, compiled = told["short"]
    assert (adds, allocations, waits, compiled) == (1, 1, 0, 1)
    assert told["again"] == [1, [0, 0], parts, 1]
    assert told["other stream"][2] != parts
    assert told["graph"] == told["kept"] != parts
    assert told["after"] == told["again"]


def test_a_launch_passes_the_words_that_numba_passes(on_idle_driver):
    for straight, through_numba, launches in on_idle_driver(WORDS).values():
        assert launches == 2
        assert len(straight) > 40
        assert straight == through_numba


def test_a_launch_that_is_kept_passes_where_its_arrays_are_now(on_idle_driver):
    told = on_idle_driver(WORDS)
    (here, _, _), (elsewhere, _, _) = told["gather"], told["gather elsewhere"]
    assert sum(one != other for one, other in zip(here, elsewhere, strict=True)) == 4  # arrays


def test_the_first_call_of_a_layer_may_be_captured(on_idle_driver):
    """Its kernels are compiled and loaded then, and the table of its phases brought to the GPU."""
    told = on_idle_driver(FIRST)
    assert len(told) == 2 * 3
    assert min(told.values()) >= 4


def test_the_benchmark_times_captured_graphs(on_idle_driver, tmp_path):
    file = tmp_path / "run.jsonl"
    assert set(on_idle_driver(BENCH, str(file)).values()) == {0}
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "contestant" in row]
    assert len(rows) == (3 + 1) * 2 * 2 * 2  # formats and "tiled", passes, sizes, styles
    assert {row["uncaptured"] for row in rows} == {None}
    assert all(row["host_median"] > 0 for row in rows if row["sizes"] == "published")


def test_the_accuracy_of_every_format_is_measured(on_idle_driver):
    told = on_idle_driver(ACCURACY)
    assert told["kinds"] == 3 * [4 * [True]]
    assert told["launches"] >= 4 * 3 * 2  # a kernel for each result, and a copy
