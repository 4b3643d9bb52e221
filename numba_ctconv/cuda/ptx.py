"""Instructions that Numba has no word for, as LLVM intrinsics: registers, shared memory and asynchronous copies.

ptx_elements.py has those for single elements and ptx_tensor.py those of tensor cores; the three hold all PTX of the
package, and all that builds LLVM code. emulator.py and emulator_tensor.py have a twin of each for blocks of NumPy
lanes; simt.py chooses. Tuples hold what a thread keeps in registers: their elements are named by constants alone, so
that nothing is addressed and nothing goes to local memory.

A port to numba-cuda's successor, numba-cuda-mlir, has no llvmlite under it and is a twin of these files. It needs, of
`cuda.experimental.inline_ptx`, the text of the assembly below, which stays as it is (operands are typed by NumPy dtypes
there); `consteval` loops over local arrays in place of the tuples (multiply_add, zero_sums, add, load_run, load_steps,
store_tile, and all of ptx_tensor.py); and its VectorType for the 16 bytes of load_run and load_weights. The kernels
import nothing else of this kind; what is left of Numba in them are cuda.threadIdx, blockIdx, shared.array and
syncthreads.
"""

from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

from .ptx_elements import (  # noqa: F401  # for the kernels
    I32,
    I64,
    add_up,
    any_of_block,
    bit,
    load_element,
    load_parts,
    load_row,
    load_sample,
    load_weight,
    multiply_add_where,
    pointer,
    store_element,
    store_part,
    store_sample,
    store_spaced,
    store_weight,
)

VECTOR_BYTES = 16  # the most that one instruction moves
SHARED = 3  # LLVM's number of the address space


# --- registers --------------------------------------------------------------------------------------------------------


def zero_sums(kind, count):
    """A maker of `count` zeros: zero_sums() -> tuple."""

    @intrinsic
    def emit(typingctx):
        def codegen(context, builder, signature, args):
            return ir.Constant(context.get_value_type(signature.return_type), None)

        return types.UniTuple(types.float64 if kind.itemsize == 8 else types.float32, count)(), codegen

    return emit


@intrinsic
def add(typingctx, one, other):
    """The sums of two tuples, element by element."""

    def codegen(context, builder, signature, args):
        pairs = zip(*(cgutils.unpack_tuple(builder, tuple_) for tuple_ in args), strict=True)
        return cgutils.pack_array(builder, [builder.fadd(a, b) for a, b in pairs])

    return one(one, other), codegen


@intrinsic
def multiply_add(typingctx, sums, column, row):
    """sums[r·len(row) + c] + column[r]·row[c], rounded once."""

    def codegen(context, builder, signature, args):
        sums, column, row = (cgutils.unpack_tuple(builder, tuple_) for tuple_ in args)
        products = [(a, b) for a in column for b in row]
        fused = [builder.fma(a, b, s) for (a, b), s in zip(products, sums, strict=True)]
        return cgutils.pack_array(builder, fused)

    return sums(sums, column, row), codegen


@intrinsic
def multiply_add_inside(typingctx, sums, column, row, places, start, length):
    """As multiply_add, but for the elements of the row of which 0 <= start + place < length does not hold: no change.

    A product with a zero in their place would turn Inf into NaN.
    """

    def codegen(context, builder, signature, args):
        sums, column, row, places = (cgutils.unpack_tuple(builder, tuple_) for tuple_ in args[:4])
        inside = [builder.icmp_unsigned("<", builder.add(place, args[4]), args[5]) for place in places]
        products = [(a, b, there) for a in column for b, there in zip(row, inside, strict=True)]
        fused = [
            builder.select(there, builder.fma(a, b, s), s) for (a, b, there), s in zip(products, sums, strict=True)
        ]
        return cgutils.pack_array(builder, fused)

    return sums(sums, column, row, places, start, length), codegen


@intrinsic
def correlate(typingctx, sums, terms, window):
    """sums[m] + Σ_j terms[j]·window[len(sums) - 1 + j - m], in the order of j, each rounded once."""

    def codegen(context, builder, signature, args):
        sums, terms, window = (cgutils.unpack_tuple(builder, tuple_) for tuple_ in args)
        for j, term in enumerate(terms):
            sums = [builder.fma(term, window[len(sums) - 1 + j - m], total) for m, total in enumerate(sums)]
        return cgutils.pack_array(builder, sums)

    return sums(sums, terms, window), codegen


# --- shared memory ----------------------------------------------------------------------------------------------------


def load_run(count):
    """A loader of neighbours: load_run(array, index) -> tuple. `index` is a multiple of what 16 bytes hold."""

    @intrinsic
    def emit(typingctx, array, index):
        def codegen(context, builder, signature, args):
            element = context.get_value_type(array.dtype)
            lanes = min(count, VECTOR_BYTES * 8 // array.dtype.bitwidth)
            values = []
            for k in range(0, count, lanes):
                at = pointer(context, builder, array, args[0], builder.add(args[1], args[1].type(k)))
                vector = builder.bitcast(at, ir.VectorType(element, lanes).as_pointer())
                loaded = builder.load(vector, align=lanes * array.dtype.bitwidth // 8)
                values += [builder.extract_element(loaded, I32(lane)) for lane in range(lanes)]
            return cgutils.pack_array(builder, values)

        return types.UniTuple(array.dtype, count)(array, index), codegen

    return emit


def load_steps(steps):
    """A loader of elements that lie at fixed steps from one: load_steps(array, index) -> tuple."""

    @intrinsic
    def emit(typingctx, array, index):
        def codegen(context, builder, signature, args):
            at = [builder.add(args[1], args[1].type(step)) for step in steps]
            values = [builder.load(pointer(context, builder, array, args[0], index)) for index in at]
            return cgutils.pack_array(builder, values)

        return types.UniTuple(array.dtype, len(steps))(array, index), codegen

    return emit


def spaced(count):
    """A maker of numbers that lie one space apart: spaced(index, space) -> tuple."""

    @intrinsic
    def emit(typingctx, index, space):
        def codegen(context, builder, signature, args):
            return cgutils.pack_array(builder, _steps(context, builder, count, signature, args))

        return types.UniTuple(types.int64, count)(index, space), codegen

    return emit


def load_spaced(count):
    """A loader of elements that lie one space apart: load_spaced(array, index, space) -> tuple."""

    @intrinsic
    def emit(typingctx, array, index, space):
        def codegen(context, builder, signature, args):
            at = _steps(context, builder, count, types.void(index, space), args[1:])
            values = [builder.load(pointer(context, builder, array, args[0], each)) for each in at]
            return cgutils.pack_array(builder, values)

        return types.UniTuple(array.dtype, count)(array, index, space), codegen

    return emit


def _steps(context, builder, count, signature, args):
    index, space = (
        context.cast(builder, value, own, types.int64) for value, own in zip(args, signature.args, strict=True)
    )
    return [builder.add(index, builder.mul(I64(k), space)) for k in range(count)]


@intrinsic
def load_shared(typingctx, array, index):
    """array[index], of which Numba would ask whether the index counts from the end."""

    def codegen(context, builder, signature, args):
        return builder.load(pointer(context, builder, array, *args))

    return array.dtype(array, index), codegen


def store_tile(row_steps, column_steps, pitch):
    """A store of a tile: store_tile(array, index, tuple), rows and columns at fixed steps from the first."""
    steps = [row * pitch + column for row in row_steps for column in column_steps]

    @intrinsic
    def emit(typingctx, array, index, sums):
        def codegen(context, builder, signature, args):
            for step, value in zip(steps, cgutils.unpack_tuple(builder, args[2]), strict=True):
                at = builder.add(args[1], args[1].type(step))
                builder.store(value, pointer(context, builder, array, args[0], at))
            return context.get_dummy_value()

        return types.void(array, index, sums), codegen

    return emit


# --- asynchronous copies ----------------------------------------------------------------------------------------------


@intrinsic
def copy_sample(typingctx, shared, index, array, n, c, l, wanted, inside):
    """Begin shared[index] = array[n, c, l], or 0 where that is not inside; nothing where it is not wanted."""

    def codegen(context, builder, signature, args):
        source = pointer(context, builder, array, args[2], *args[3:6])
        _copy(context, builder, shared, args[0], args[1], source, array.dtype.bitwidth // 8, args[6], args[7])
        return context.get_dummy_value()

    return types.void(shared, index, array, n, c, l, wanted, inside), codegen


@intrinsic
def copy_vector(typingctx, shared, index, array, position, wanted):
    """Begin the copy of 16 bytes, shared[index ..] = array[position ..], where wanted; both aligned to them."""

    def codegen(context, builder, signature, args):
        source = pointer(context, builder, array, args[2], args[3])
        _copy(context, builder, shared, args[0], args[1], source, VECTOR_BYTES, args[4], None)
        return context.get_dummy_value()

    return types.void(shared, index, array, position, wanted), codegen


def _copy(context, builder, shared, array, index, source, size, wanted, inside):
    """cp.async: where the second size is 0, nothing is read and zeros are written."""
    target = builder.addrspacecast(pointer(context, builder, shared, array, index), ir.IntType(8).as_pointer(SHARED))
    read = I32(size) if inside is None else builder.select(bit(builder, inside), I32(size), I32(0))
    through = "cg" if size == VECTOR_BYTES else "ca"  # 4 and 8 bytes go through the first-level cache, and only they
    code = f"{{ .reg .pred p; setp.ne.b32 p, $3, 0; @p cp.async.{through}.shared.global [$0], [$1], {size}, $2; }}"
    operands = [
        builder.ptrtoint(target, I32),
        builder.ptrtoint(source, I64),
        read,
        builder.zext(bit(builder, wanted), I32),
    ]
    kind = ir.FunctionType(ir.VoidType(), [I32, I64, I32, I32])
    builder.call(ir.InlineAsm(kind, code, "r,l,r,r,~{memory}", side_effect=True), operands)


@intrinsic
def commit(typingctx):
    """End a group of copies."""
    return types.void(), _fixed("cp.async.commit_group;")


def wait(groups):
    """A wait for all groups but the last few: wait()."""

    @intrinsic
    def emit(typingctx):
        return types.void(), _fixed(f"cp.async.wait_group {groups};")

    return emit


def _fixed(code):
    def codegen(context, builder, signature, args):
        builder.call(ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), code, "~{memory}", side_effect=True), [])
        return context.get_dummy_value()

    return codegen
