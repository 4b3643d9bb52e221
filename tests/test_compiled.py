"""What the compiler made of the CPU kernels: vector code, one version a dtype, a cache that sees every change."""

import re

import numba
import numpy as np
import pytest
from strategies import LAYOUTS

import numba_ctconv as nc
from numba_ctconv.cpu import compilation, forward, grad_input, grad_weight, rows, target

GATHERS = {"forward": forward.gather, "grad_input": grad_input.gather, "grad_weight": grad_weight.gather}
# multiplications and FMAs on whole vectors: x86 ...ps/...pd on ymm or zmm, or NEON's fmla on 4s or 2d
PACKED = {
    "float32": r"v?f?n?madd\d*ps\s.*%[yz]mm|fmla\s+v\d+\.4s",
    "float64": r"v?f?n?madd\d*pd\s.*%[yz]mm|fmla\s+v\d+\.2d",
}


def serial_assembly(kernel, dtype):
    """The code of a kernel compiled without threads, which Numba shows in one piece."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": compilation.EXACT}
    compiled = numba.njit(kernel.signature(np.dtype(dtype)), **options)(kernel.function)
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


def test_layouts_and_lengths_compile_nothing():
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 2, 4)).astype(np.float32)

    def call(x, w):
        y = nc.conv_transpose1d(x, w, stride=2)
        nc.conv_transpose1d_backward(y, x, w, stride=2)

    call(np.ones((1, 3, 5), np.float32), w)
    kernels = (*GATHERS.values(), grad_weight.sum_channels)
    compiled = [dict(kernel.compiled) for kernel in kernels]
    for length, layout in enumerate(LAYOUTS.values(), start=1):
        call(layout(rng.standard_normal((2, 3, 7 * length)).astype(np.float32)), layout(w))
    assert [dict(kernel.compiled) for kernel in kernels] == compiled
    for kernel in kernels:
        assert len(kernel.compiled[np.dtype(np.float32)].signatures) == 1


def test_the_cache_serves_only_the_sources_it_was_made_from(monkeypatch, tmp_path):
    """The stamp covers helpers in other files than the kernel's, which Numba's own does not."""

    def hits(stamp):
        monkeypatch.setattr(compilation, "_sources", lambda file: stamp)
        kernel = compilation.Kernel(grad_weight.sum_channels.function, grad_weight.sum_channels.arguments)
        stats = kernel.compile(np.dtype(np.float64)).stats
        return sum(stats.cache_hits.values())

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    assert hits("one") == 0
    assert hits("one") == 1
    assert hits("other") == 0


def test_the_stamp_reads_every_file_of_the_engine(monkeypatch, tmp_path):
    for name in ("target.py", "rows.py"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(compilation, "__file__", str(tmp_path / "target.py"))
    before = compilation._sources.__wrapped__()
    (tmp_path / "rows.py").write_text("2")
    assert compilation._sources.__wrapped__() != before


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
