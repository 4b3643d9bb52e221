"""What LLVM makes of the micro-kernels for machines that need not be at hand: NEON, AVX2 and AVX-512.

They are compiled to assembly, never run: what they compute is tested where they run.
"""

import re
from typing import NamedTuple

import llvmlite.binding as llvm
import pytest
from llvmlite import ir
from numba import types

from numba_ctconv.benchmark.workloads import layer_problems
from numba_ctconv.cpu import (
    column_tiles,
    depthwise_rows,
    layout,
    microkernels,
    target,
    tile_rows,
    unpacked_tiles,
    weight_layout,
)
from numba_ctconv.cpu.emitter import I64
from numba_ctconv.cpu.microkernels import Shape
from numba_ctconv.geometry import plan


class Machine(NamedTuple):
    """A target of LLVM, and how its assembly reads."""

    triple: str
    cpu: str
    vector_bytes: int
    registers: int
    fma: dict[int, str]  # on whole vectors, by the bytes of an element
    stack: str


NEON = {4: r"fmla\s+v\d+\.4s", 8: r"fmla\s+v\d+\.2d"}
YMM = {4: r"vfn?madd\d+ps\b.*%ymm", 8: r"vfn?madd\d+pd\b.*%ymm"}
ZMM = {4: r"vfn?madd\d+ps\b.*%zmm", 8: r"vfn?madd\d+pd\b.*%zmm"}
MACHINES = [
    Machine("aarch64-unknown-linux-gnu", "neoverse-n1", 16, 32, NEON, r"\bsp\b"),
    Machine("aarch64-unknown-linux-gnu", "cortex-a72", 16, 32, NEON, r"\bsp\b"),
    Machine("aarch64-unknown-linux-gnu", "apple-m1", 16, 32, NEON, r"\bsp\b"),
    Machine("x86_64-unknown-linux-gnu", "haswell", 32, 16, YMM, r"%rsp"),
    Machine("x86_64-unknown-linux-gnu", "skylake-avx512", 64, 32, ZMM, r"%rsp"),
    Machine("x86_64-unknown-linux-gnu", "znver4", 64, 32, ZMM, r"%rsp"),
]
SCALAR = r"vfn?madd\d+s[sd]\b|fn?madd\s"
CALL = r"(callq?|bl|blr)\s"
LABEL = r"\.?(L\w+):"
BRANCH = r"(?:j\w+|b\.?\w*|cbn?z|tbn?z)\s.*?\.?(L\w+)$"


@pytest.fixture(params=MACHINES, ids=lambda machine: machine.cpu)
def machine(request, monkeypatch):
    """What the layouts take the host for; a wheel of llvmlite may lack its backend."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        llvm.Target.from_triple(request.param.triple)
    except RuntimeError as reason:
        pytest.skip(f"llvmlite has no such backend here: {reason}")
    monkeypatch.setattr(target, "vector_bytes", lambda: request.param.vector_bytes)
    monkeypatch.setattr(target, "vector_registers", lambda: request.param.registers)
    return request.param


def assembly(machine, write, count):
    """The instructions and labels of a function of so many integers, as Numba would have LLVM optimise it."""
    module = ir.Module("module")
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64] * count), "function")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    write(builder, function.args)
    builder.ret_void()
    compiler = llvm.Target.from_triple(machine.triple).create_target_machine(
        cpu=machine.cpu, opt=3, reloc="static", codemodel="jitdefault"
    )
    parsed = llvm.parse_assembly(str(module))
    parsed.triple, parsed.data_layout = machine.triple, str(compiler.target_data)
    parsed.verify()
    passes = llvm.create_pass_builder(compiler, llvm.create_pipeline_tuning_options(speed_level=3))
    passes.getModulePassManager().run(parsed, passes)
    return [line.strip() for line in compiler.emit_assembly(parsed).splitlines()]


def intrinsic(function, *literals):
    """What writes the code of an intrinsic that takes literals, then the address of its arguments."""
    _, codegen = function._defn(None, *map(types.literal, literals), types.int64)

    class Context:
        def get_dummy_value(self):
            return None

    return lambda builder, given: codegen(Context(), builder, None, [None] * len(literals) + list(given))


def innermost_loops(lines):
    """The instructions of the loops that no other begins in, as outer ones may begin and end where inner ones leave."""
    places = {found[1]: k for k, line in enumerate(lines) if (found := re.match(LABEL, line))}
    loops = [
        (places[found[1]], k)
        for k, line in enumerate(lines)
        if (found := re.match(BRANCH, line)) and places.get(found[1], k) < k
    ]
    inner = [(a, b) for a, b in loops if not any(a < c <= b or (a == c and d < b) for c, d in loops)]
    return [lines[a:b] for a, b in inner]


def count(pattern, lines):
    return sum(re.match(pattern, line) is not None for line in lines)


def layouts():
    """(itemsize, a layout of forward or of grad_input, whether it has rows of tiles) of the core layers."""
    for layer in layer_problems(core=True):
        own = plan(layer.kernel_size, layer.stride, layer.dilation)
        c_in, c_out = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        for itemsize in (4, 8):  # past what is kept of the host's layouts
            for families in (
                layout.forward_layouts.__wrapped__(own, c_in, c_out, itemsize),
                layout.grad_input_layouts.__wrapped__(own, c_out, c_in, itemsize),
            ):
                for family in families or ():
                    yield itemsize, family, family.many_streams


def shapes():
    """The full tiles of the core layers, and those of them that stand in rows."""
    tiles, rows = set(), set()
    for itemsize, own, many in layouts():
        shape = Shape(int(itemsize == 8), own.lanes, own.rows, own.vectors, own.tile_phases, own.slots)
        tiles.add(shape)
        rows.update([shape] if many else [])
    for layer in layer_problems(core=True):
        own = plan(layer.kernel_size, layer.stride, layer.dilation)
        for itemsize in (4, 8):
            channels = layer.in_channels // layer.groups, layer.out_channels // layer.groups
            for way in (weight_layout.by_shifts, weight_layout.by_taps):
                sums = way.__wrapped__(own, *channels, itemsize)
                if sums is not None:
                    tiles.update(Shape(int(itemsize == 8), *sums[:3], 1, 1, adds) for adds in (0, 1))
    return tiles, rows


def test_tiles_multiply_whole_vectors_in_registers(machine):
    """The loop over terms is one FMA for each vector of the tile: not unrolled, without a call, nothing spilled."""
    for kind, takes, wanted in zip((microkernels.Tile, tile_rows.TileRow), (10, 9), shapes(), strict=True):
        assert wanted
        for shape in sorted(wanted):
            lines = assembly(machine, lambda builder, given: kind(builder, shape).write(*given), takes)  # noqa: B023  # called here
            fma = machine.fma[8 if shape.double else 4]
            assert count(CALL, lines) == 0, shape
            (terms,) = [loop for loop in innermost_loops(lines) if count(fma, loop)]
            assert count(fma, lines) == count(fma, terms) == shape.rows * shape.vectors, shape
            assert not [line for line in terms if re.search(machine.stack, line)], shape


def test_tall_tiles_multiply_whole_vectors_in_registers(machine):
    """As above, with the panels of several tiles of one vector."""
    wanted = {
        (Shape(int(itemsize == 8), own.lanes, own.rows * own.tall_tiles, 1, own.tile_phases, own.slots), own.rows)
        for itemsize, own, _ in layouts()
        if own.tall_tiles > 1
    }
    assert wanted
    for shape, rows in sorted(wanted):
        lines = assembly(machine, lambda builder, given: tile_rows.TallTile(builder, shape, rows).write(*given), 9)  # noqa: B023  # called here
        fma = machine.fma[8 if shape.double else 4]
        assert count(CALL, lines) == 0, shape
        (terms,) = [loop for loop in innermost_loops(lines) if count(fma, loop)]
        assert count(fma, lines) == count(fma, terms) == shape.rows, shape
        assert not [line for line in terms if re.search(machine.stack, line)], shape


@pytest.mark.parametrize("double", [0, 1])
def test_depthwise_rows_multiply_whole_vectors(machine, double):
    operations = depthwise_rows.forward_rows, depthwise_rows.grad_input_rows, depthwise_rows.grad_weight_rows
    fma = machine.fma[8 if double else 4]
    lanes = machine.vector_bytes // (8 if double else 4)
    for taps, stride, dilation in {
        (layer.kernel_size, layer.stride, layer.dilation)
        for layer in layer_problems(core=True)
        if layer.groups == layer.in_channels > 1
    }:
        for operation in operations:
            skipped = [stride - 1] if operation is depthwise_rows.forward_rows else []
            lines = assembly(machine, intrinsic(operation, double, lanes, taps, stride, dilation, *skipped), 1)
            assert count(CALL, lines) == count(SCALAR, lines) == 0
            assert max(count(fma, loop) for loop in innermost_loops(lines)) >= min(taps, machine.registers // 2)


@pytest.mark.parametrize("double", [0, 1])
@pytest.mark.parametrize("rows", [4, 5, 8, 12])
def test_tiles_of_few_columns_multiply_vectors(machine, double, rows):
    """Vectors as wide as the rows of one panel, or of two where the machine's have room for them; nothing spilled."""
    if rows > machine.registers // 4 * 3 // 2:
        pytest.skip(f"the tiles of this machine have at most {machine.registers // 4 * 3 // 2} rows")
    size = 8 if double else 4
    lanes = machine.vector_bytes // size
    fma = machine.fma[size].replace("%ymm", "%[xy]mm").replace("%zmm", "%[xyz]mm")
    paired = [column_tiles.columns_met(columns) for columns in column_tiles.PAIRED_COLUMNS]
    for met in [[range(columns)] for columns in column_tiles.COLUMNS] + paired:

        def write(builder, given, met=met):
            tile = column_tiles.ColumnTile(builder, double, lanes, rows)
            tile.write(met, *given)

        columns = met[-1].stop
        lines = assembly(machine, write, 8)
        assert count(CALL, lines) == count(SCALAR, lines) == 0
        assert count(fma, lines) >= sum(map(len, met))
        if column_tiles.fit_together(lanes, rows, columns):
            loops = [loop for loop in innermost_loops(lines) if count(fma, loop)]
            assert loops
            assert not [line for loop in loops for line in loop if re.search(machine.stack, line)], met


@pytest.mark.parametrize("double", [0, 1])
@pytest.mark.parametrize(("phases", "taps"), [(2, 2), (4, 2), (4, 1), (2, 4), (3, 2), (5, 2)])
def test_tiles_of_weights_where_they_are_multiply_vectors(machine, double, phases, taps):
    """A loop for each count of columns, of the terms of a few channels; and one of a channel and a column."""
    size, (rows, run) = 8 if double else 4, layout.tile_shape(512, phases)
    lanes = machine.vector_bytes // size
    most = unpacked_tiles.most_columns(lanes, rows, taps)
    if most == 0:
        pytest.skip("the samples of a channel do not fit the registers of this machine")
    lines = assembly(machine, intrinsic(unpacked_tiles.unpacked_tile, double, lanes, rows, run, taps, layout.BLOCK), 1)
    fma = machine.fma[size].replace("%ymm", "%[xy]mm").replace("%zmm", "%[xyz]mm")
    assert count(CALL, lines) == count(SCALAR, lines) == 0
    counts, terms = {taps}, unpacked_tiles.TERMS
    registers = -(-unpacked_tiles.vector_lanes(lanes, rows) // lanes)
    for n in [columns for columns in column_tiles.COLUMNS if columns <= most]:
        own = 2 * terms if 2 * terms * n * registers <= machine.registers else terms
        counts.add(min(own, unpacked_tiles.MOST_CHANNELS * taps) * n)
    found = {count(fma, loop) for loop in innermost_loops(lines)} - {0}
    assert found == {registers * n for n in counts}
