"""Instructions of tensor cores, and words: mma.sync, the rounding to tf32, and pairs of halves.

Beside ptx.py, which says what they are for; fragments.py says which lane holds what, arithmetic.py what a word is.
Words are float32 registers, whatever they hold: moves leave their bits alone.
"""

from llvmlite import ir
from numba.cuda import cgutils, types
from numba.cuda.extending import intrinsic

from .ptx_elements import F32, I16, I32, I64, assembly, bit, pointer, widened

SHAPES = {
    "tf32": "m16n8k8.row.col.f32.tf32.tf32.f32",
    "float16": "m16n8k16.row.col.f32.f16.f16.f32",
    "bfloat16": "m16n8k16.row.col.f32.bf16.bf16.f32",
}


def multiply_add(name):
    """A maker of products: multiply_add(sums, a, low, high) -> sums.

    `a` holds four words for every 16 rows; `low` and `high` the two words for every 8 columns. The sums are row by row,
    two rows for each of the first and two columns for each of the second.
    """

    @intrinsic
    def emit(typingctx, sums, a, low, high):
        across = 2 * low.count
        quad = ir.LiteralStructType([F32] * 4)
        results, operands = "=f," * 4, "r," * 6 + "f,f,f,f"
        code = f"mma.sync.aligned.{SHAPES[name]} {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$10,$11,$12,$13}};"

        def codegen(context, builder, signature, args):
            total, a_, low_, high_ = (cgutils.unpack_tuple(builder, tuple_) for tuple_ in args)
            a_, low_, high_ = ([builder.bitcast(word, I32) for word in words] for words in (a_, low_, high_))
            for m in range(a.count // 4):
                for n in range(low.count):
                    own = [(2 * m + i // 2) * across + 2 * n + i % 2 for i in range(4)]
                    given = [*a_[4 * m : 4 * m + 4], low_[n], high_[n], *(total[k] for k in own)]
                    made = assembly(builder, quad, code, results + operands, given, attrs=("convergent",))
                    for i, k in enumerate(own):
                        total[k] = builder.extract_value(made, i)
            return cgutils.pack_array(builder, total)

        return sums(sums, a, low, high), codegen

    return emit


def load_weights(count):
    """A loader of what a lane holds of packed weights: load_weights(array, index) -> four words for every 16 rows."""

    @intrinsic
    def emit(typingctx, array, index):
        vector = ir.VectorType(F32, 4).as_pointer()

        def codegen(context, builder, signature, args):
            words = []
            for m in range(count):
                at = pointer(context, builder, array, args[0], builder.add(args[1], args[1].type(m * 128)))
                loaded = builder.load(builder.bitcast(at, vector), align=16)
                words += [builder.extract_element(loaded, I32(k)) for k in range(4)]
            return cgutils.pack_array(builder, words)

        return types.UniTuple(array.dtype, 4 * count)(array, index), codegen

    return emit


@intrinsic
def words_where(typingctx, words, wanted):
    """The words, or zeros where they are not wanted: beyond a stage's terms, whose zero weights must not meet Inf."""

    def codegen(context, builder, signature, args):
        truth = bit(builder, args[1])
        kept = [builder.select(truth, word, F32(0)) for word in cgutils.unpack_tuple(builder, args[0])]
        return cgutils.pack_array(builder, kept)

    return words(words, wanted), codegen


def _each(change):
    """An intrinsic that changes a word, or each of a tuple."""

    @intrinsic
    def emit(typingctx, words):
        def codegen(context, builder, signature, args):
            if not isinstance(words, types.UniTuple):
                return change(builder, args[0])
            return cgutils.pack_array(builder, [change(builder, w) for w in cgutils.unpack_tuple(builder, args[0])])

        return words(words), codegen

    return emit


def _rounded(builder, word):
    bits = assembly(builder, I32, "cvt.rna.tf32.f32 $0, $1;", "=r,f", [word])
    return builder.bitcast(bits, F32)


def _unpacked(name, shift):
    """The change from a word to the float32 number of one of its halves."""

    def change(builder, word):
        bits = builder.trunc(builder.lshr(builder.bitcast(word, I32), I32(shift)), I16)
        return widened(builder, {"float16": "f16", "bfloat16": "bf16"}[name], bits)

    return change


rounded = _each(_rounded)  # to tf32, to nearest, ties away from zero
unpacked = {(name, k): _each(_unpacked(name, 16 * k)) for name in ("float16", "bfloat16") for k in (0, 1)}


def _pair(context, builder, kind, array, places, inside):
    """A word of two halves, loaded where they are inside, else 0."""
    operands = [builder.ptrtoint(pointer(context, builder, kind, array, *place), I64) for place in places]
    operands += [builder.zext(bit(builder, truth), I32) for truth in inside]
    code = (
        "{ .reg .pred p, q; .reg .b16 a, b; setp.ne.b32 p, $3, 0; setp.ne.b32 q, $4, 0; mov.b16 a, 0; mov.b16 b, 0; "
        "@p ld.global.b16 a, [$1]; @q ld.global.b16 b, [$2]; mov.b32 $0, {a, b}; }"
    )
    return assembly(builder, I32, code, "=r,l,l,r,r,~{memory}", operands, side_effect=True)


@intrinsic
def load_pair(typingctx, array, n, c, l, other_n, other_c, other_l, inside, other_inside):
    """The word of array[n, c, l] and array[other_n, other_c, other_l], halves; 0 for what is not inside."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(_pair(context, builder, array, args[0], (args[1:4], args[4:7]), args[7:]), F32)

    return types.float32(array, n, c, l, other_n, other_c, other_l, inside, other_inside), codegen


@intrinsic
def copy_pair(typingctx, shared, index, array, n, c, l, other_n, other_c, other_l, wanted, inside, other_inside):
    """shared[index] = load_pair(...) where wanted: copies of two bytes cannot be asynchronous."""

    def codegen(context, builder, signature, args):
        word = _pair(context, builder, array, args[2], (args[3:6], args[6:9]), args[10:])
        target = pointer(context, builder, shared, args[0], args[1])
        place = builder.ptrtoint(builder.addrspacecast(target, ir.IntType(8).as_pointer(3)), I32)
        code = "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p st.shared.b32 [$0], $1; }"
        truth = builder.zext(bit(builder, args[9]), I32)
        assembly(builder, ir.VoidType(), code, "r,r,r,~{memory}", [place, word, truth], side_effect=True)
        return context.get_dummy_value()

    return types.void(shared, index, array, n, c, l, other_n, other_c, other_l, wanted, inside, other_inside), codegen
