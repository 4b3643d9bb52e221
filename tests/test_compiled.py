"""What the compiler made of the CPU kernels: vector code, one version a dtype, a cache that sees every change."""

import os
import re
import subprocess
import sys
import time

import numba
import numpy as np
import pytest
from numba.core import event
from strategies import LAYOUTS

import numba_ctconv as nc
from numba_ctconv.cpu import compilation, disk, forward, grad_input, grad_weight, rows, target

GATHERS = {"forward": forward.gather, "grad_input": grad_input.gather, "grad_weight": grad_weight.gather}
# multiplications and FMAs on whole vectors: x86 ...ps/...pd on ymm or zmm, or NEON's fmla on 4s or 2d
PACKED = {
    "float32": r"v?f?n?madd\d*ps\s.*%[yz]mm|fmla\s+v\d+\.4s",
    "float64": r"v?f?n?madd\d*pd\s.*%[yz]mm|fmla\s+v\d+\.2d",
}


def serial_assembly(kernel, dtype):
    """The code of a kernel compiled without threads, which Numba shows in one piece."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": compilation.EXACT}
    signature = compilation.signature_of(kernel.arguments, np.dtype(dtype), {})
    compiled = numba.njit(signature, **options)(kernel.function)
    return compiled.inspect_asm(compiled.signatures[0])


@pytest.mark.parametrize("operation", GATHERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_innermost_loop_of_gather_vectorises(operation, dtype):
    packed = re.findall(PACKED[dtype], serial_assembly(GATHERS[operation], dtype))
    assert len(packed) >= 4, f"{len(packed)} vector FMAs"


def test_the_pattern_tells_scalar_code():
    """The same loop over arrays of unknown stride is scalar, and the pattern sees that."""
    any_stride = numba.types.Array(numba.float32, 1, "A")
    compiled = numba.njit(numba.void(any_stride, numba.float32, any_stride), fastmath=compilation.EXACT)(
        rows.add_scaled.py_func
    )
    assert not re.search(PACKED["float32"], compiled.inspect_asm(compiled.signatures[0]))


@pytest.mark.parametrize("algorithm", ["auto", "tiled", "gather", "scatter"])
def test_layouts_lengths_and_batches_compile_nothing(algorithm):
    rng = np.random.default_rng(0)
    w = rng.standard_normal((5, 3, 4)).astype(np.float32)

    def call(x, w):
        y = nc.conv_transpose1d(x, w, stride=2, algorithm=algorithm)
        nc.conv_transpose1d_backward(y, x, w, stride=2, algorithm=algorithm)

    call(np.ones((1, 5, 5), np.float32), w)
    made = event.RecordingListener()
    with event.install_listener("numba:compile", made):
        for number, layout in enumerate(LAYOUTS.values(), start=1):
            for batch, length in ((1, 1), (number, 7 * number), (2, 3), (1, 300)):
                call(layout(rng.standard_normal((batch, 5, length)).astype(np.float32)), layout(w))
    assert not made.buffer


def test_the_cache_serves_only_the_sources_it_was_made_from(monkeypatch, tmp_path):
    """The stamp covers helpers in other files than the kernel's, which Numba's own does not."""

    def hits(stamp):
        monkeypatch.setattr(disk, "_sources", lambda _: stamp)
        kernel = compilation.Kernel(grad_weight.sum_channels.function, grad_weight.sum_channels.arguments)
        kernel.compile(np.dtype(np.float64))
        return sum(kernel.dispatchers[-1].stats.cache_hits.values())

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert hits("one") == 0
    assert hits("one") == 1
    assert hits("other") == 0


def test_the_stamp_reads_every_file_of_the_engine_and_that_of_the_function(monkeypatch, tmp_path):
    engine, geometry, elsewhere = tmp_path / "cpu", tmp_path / "geometry.py", tmp_path / "elsewhere.py"
    engine.mkdir()
    for path in (engine / "disk.py", engine / "rows.py", geometry, elsewhere):
        path.write_text("1")
    monkeypatch.setattr(disk, "__file__", str(engine / "disk.py"))

    def stamps():
        return [disk._sources.__wrapped__(str(path)) for path in (engine / "rows.py", elsewhere)]

    first = stamps()
    elsewhere.write_text("2")
    second = stamps()
    assert second[0] == first[0]
    assert second[1] != first[1]
    seen = {*first, *second}
    for path in (engine / "rows.py", geometry):
        path.write_text("2")
        changed = set(stamps())
        assert not changed & seen, path
        seen |= changed


def run(code, folder, **environment):
    """What a new process prints that keeps its code in a folder."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder)} | environment
    command = [sys.executable, "-W", "error", "-c", code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def printed(process):
    out, complaints = process.communicate()
    assert process.returncode == 0, complaints
    return out


SMALL = """
import numpy as np
import numba_ctconv as nc
from numba.core import event
from numba_ctconv.cpu import microkernels
made = event.RecordingListener()
with event.install_listener("numba:compile", made):
    y = nc.conv_transpose1d_backward(np.ones((1, 2, 30)), None, np.ones((1, 2, 1)), needs=("bias",), input_length=30)
    tiles = [] if {tiles} == 0 else microkernels.tiles(8, 2, 4, {tiles}, 1, 1)
assert (y.bias == 30).all()
print(len(made.buffer))
"""
KEPT = 4  # of it without tiles: both forms of the bias' kernel, and the two compiled functions that it calls


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_process_finds_both_forms_and_the_tiles_and_compiles_nothing(tmp_path):
    code = SMALL.format(tiles=2)
    assert int(printed(run(code, tmp_path))) > 0
    kept = files(tmp_path)
    forms = [path.name for path in kept if "sum_channels" in path.name]
    assert len(forms) == 2
    assert [path.name for path in kept if "microkernels.tile" in path.name]
    assert int(printed(run(code, tmp_path))) == 0
    assert files(tmp_path) == kept


@pytest.mark.parametrize("call", ["nc.conv_transpose1d(x, w, stride=2)", "layer(x)"], ids=["function", "layer"])
def test_a_first_call_compiles_what_any_length_needs(call, tmp_path):
    """With an empty folder: one that others have filled serves a later call as well."""
    code = f"""
import numpy as np
import numba_ctconv as nc
from numba.core import event
made, w = event.RecordingListener(), np.ones((5, 3, 4), np.float32)
layer = nc.ConvTranspose1d(5, 3, 4, 2)
def run(batch, length):
    x = np.ones((batch, 5, length), np.float32)
    y = {call}
    nc.conv_transpose1d_backward(y, x, w, stride=2)
run(1, 5)
with event.install_listener("numba:compile", made):
    for batch, length in ((1, 1), (2, 3), (40, 16), (1, 300), (1, 3000)):
        run(batch, length)
print(len(made.buffer))
"""
    assert printed(run(code, tmp_path)).strip() == "0"


def test_what_is_damaged_is_compiled_anew(tmp_path):
    code = SMALL.format(tiles=0)
    printed(run(code, tmp_path))
    whole = files(tmp_path)
    for number, (path, content) in enumerate(whole.items()):
        path.write_bytes([content[:-7], b"", content[:900] + bytes([content[900] ^ 1]) + content[901:]][number % 3])
    assert int(printed(run(code, tmp_path))) > 0
    assert set(files(tmp_path)) == set(whole)
    assert int(printed(run(code, tmp_path))) == 0


def test_processes_fill_a_folder_at_once(tmp_path):
    code = SMALL.format(tiles=0)
    for process in [run(code, tmp_path) for _ in range(4)]:
        printed(process)
    assert [path.suffix for path in files(tmp_path)] == [".nbc"] * KEPT  # and nothing half-written
    assert int(printed(run(code, tmp_path))) == 0


def test_another_processor_has_files_of_its_own(tmp_path):
    code = SMALL.format(tiles=0)
    printed(run(code, tmp_path))
    assert int(printed(run(code, tmp_path, NUMBA_CPU_NAME="generic"))) > 0
    assert len(files(tmp_path)) == 2 * KEPT


def test_what_other_sources_left_is_removed_once_nobody_uses_it(tmp_path):
    code = SMALL.format(tiles=0)
    printed(run(code, tmp_path))
    (folder,) = tmp_path.iterdir()
    old, recent, foreign = (folder / name for name in ("ctconv-a.b.old.nbc", "ctconv-a.b.new.nbc", "a.py311.1.nbc"))
    for path, age in ((old, 8), (recent, 1), (foreign, 8)):
        path.touch()
        os.utime(path, (time.time() - age * 86400,) * 2)
    for path in folder.glob("*sum_channels*"):
        path.unlink()
    printed(run(code, tmp_path))
    assert not old.exists()
    assert recent.exists()
    assert foreign.exists()


def test_a_folder_that_can_only_be_read_serves(tmp_path):
    """A container image is filled while it is built, and read-only or another user's when it runs."""
    code = SMALL.format(tiles=0) + "from numba_ctconv.cpu import disk; print(disk.cache_folder())"
    printed(run(code, tmp_path))
    refuse = "import tempfile\ndef refuse(**_): raise PermissionError\ntempfile.TemporaryFile = refuse\n"
    locators = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    # the code that is there serves, so nothing is compiled in memory, and nothing has to be said
    assert printed(run(refuse + code, tmp_path, **locators)).split() == ["0", "None"]


@pytest.mark.parametrize(
    ("triple", "features", "vector_bytes", "registers"),
    [
        ("x86_64-unknown-linux-gnu", "+avx2,+fma,+avx512f", 64, 32),
        ("x86_64-unknown-linux-gnu", "+avx2,+fma,-avx512f", 32, 16),
        ("x86_64-unknown-linux-gnu", "", 16, 16),
        ("aarch64-unknown-linux-gnu", "+neon", 16, 32),
        ("arm64-apple-darwin24.0.0", "", 16, 32),
        ("armv7l-unknown-linux-gnueabihf", "+neon", 16, 16),
    ],
)
def test_vectors_and_registers_are_those_of_the_target(monkeypatch, triple, features, vector_bytes, registers):
    monkeypatch.setattr(target, "_target", lambda: (triple, "some", features))
    assert target.vector_bytes.__wrapped__() == vector_bytes
    assert target.vector_registers.__wrapped__() == registers


@pytest.mark.parametrize("rows_", [1, 7, 512])
@pytest.mark.parametrize("phases", [1, 8, 256, 1_000_003])
@pytest.mark.parametrize("positions", [1, 100, 10**7])
@pytest.mark.parametrize("itemsize", [4, 8])
def test_tiles_stay_in_the_first_level_cache(rows_, phases, positions, itemsize):
    tile = target.tile(rows_, phases, positions, itemsize)
    assert min(tile) >= 1
    assert tile.rows <= rows_
    assert tile.phases <= phases
    assert tile.stretch <= positions
    assert np.prod(tile) * itemsize <= target.SUMS_BYTES


@pytest.mark.parametrize(
    ("workers", "rows_", "length", "expected"), [(2, 1, 80000, 2), (4, 3, 99, 2), (2, 8, 9, 1), (8, 1, 3, 3)]
)
def test_scatter_cuts_time_where_rows_are_too_few_for_the_workers(workers, rows_, length, expected):
    assert target.stretches(workers, rows_, length) == expected
