"""LANES numbers at once, held in the processor's registers: a type for kernels that numba itself does not have.

A kernel sums in it what would else go to memory and back for every few numbers. LLVM cuts the lanes into the registers
of the machine: four of AVX-512 for float32, eight of AVX2. Each function becomes the few instructions it stands for.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, register_model

LANES = 64
CACHE_LINE_BYTES = 64
FOR_READING = 0, 3, 1  # arguments of llvm.prefetch: to be read, kept in all caches, of data


class Lanes(types.Type):
    """LANES numbers of one type."""

    def __init__(self, number: types.Number):
        self.number = number
        super().__init__(name=f"Lanes({number})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, ir.VectorType(manager.lookup(lanes.number).get_value_type(), LANES))


@intrinsic
def zeros(_, array):
    """Zeros of the array's type."""
    return Lanes(array.dtype)(array), lambda context, _, signature, __: context.get_constant_null(signature.return_type)


@intrinsic
def load(_, array, at):
    """array[at : at + LANES], which must be there."""

    def code(context, builder, signature, arguments):
        pointer, _ = _place(context, builder, signature, arguments)
        return builder.load(pointer, align=_number_bytes(signature))

    return Lanes(array.dtype)(_row(array), types.intp), code


@intrinsic
def store(_, array, at, lanes):
    """array[at : at + LANES] = lanes, where there must be room."""

    def code(context, builder, signature, arguments):
        pointer, _ = _place(context, builder, signature, arguments)
        builder.store(arguments[2], pointer, align=_number_bytes(signature))
        return context.get_dummy_value()

    return types.none(_row(array), types.intp, lanes), code


@intrinsic
def load_part(_, array, at):
    """As `load`, but zeros past the end of the array, where `at` itself may not lie."""

    def code(context, builder, signature, arguments):
        pointer, left = _place(context, builder, signature, arguments)
        room = cgutils.alloca_once(builder, pointer.type.pointee)
        with builder.if_else(builder.icmp_signed(">=", left, left.type(LANES))) as (whole, part):
            with whole:
                builder.store(builder.load(pointer, align=_number_bytes(signature)), room)
            with part:
                builder.store(ir.Constant(pointer.type.pointee, None), room)
                cgutils.raw_memcpy(builder, room, pointer, left, _number_bytes(signature))
        return builder.load(room)

    return Lanes(array.dtype)(_row(array), types.intp), code


@intrinsic
def store_part(_, array, at, lanes):
    """As `store`, but for what is past the end of the array, where `at` itself may not lie."""

    def code(context, builder, signature, arguments):
        pointer, left = _place(context, builder, signature, arguments)
        with builder.if_else(builder.icmp_signed(">=", left, left.type(LANES))) as (whole, part):
            with whole:
                builder.store(arguments[2], pointer, align=_number_bytes(signature))
            with part:
                room = cgutils.alloca_once_value(builder, arguments[2])
                cgutils.raw_memcpy(builder, pointer, room, left, _number_bytes(signature))
        return context.get_dummy_value()

    return types.none(_row(array), types.intp, lanes), code


@intrinsic
def prefetch(_, array, at):
    """Have array[at : at + LANES] brought to the cache; nothing has to be there."""

    def code(context, builder, signature, arguments):
        pointer, _ = _place(context, builder, signature, arguments)
        bytes_, number = builder.bitcast(pointer, ir.IntType(8).as_pointer()), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [bytes_.type, *[number] * 3])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for line in range(0, LANES * _number_bytes(signature), CACHE_LINE_BYTES):
            builder.call(fetch, [builder.gep(bytes_, [ir.IntType(32)(line)]), *map(number, FOR_READING)])
        return context.get_dummy_value()

    return types.none(_row(array), types.intp), code


@intrinsic
def add_product(_, lanes, number, others):
    """lanes + number · others; where the machine can, rounded once."""

    def code(context, builder, signature, arguments):
        to, number, others = arguments
        product = builder.fmul(_splat(builder, number), others, flags=("contract",))
        return builder.fadd(to, product, flags=("contract",))

    return lanes(lanes, lanes.number, lanes), code


@intrinsic
def nonzero(_, lanes):
    """A whole number of LANES bits: bit k is whether lane k is not zero."""

    def code(context, builder, signature, arguments):
        bits = builder.fcmp_unordered("!=", arguments[0], ir.Constant(arguments[0].type, None))
        return builder.bitcast(bits, ir.IntType(LANES))

    return types.uint64(lanes), code


@intrinsic
def ones(_, bits):
    """How many bits are set."""
    return types.int64(types.uint64), lambda context, builder, _, arguments: builder.ctpop(arguments[0])


@intrinsic
def lowest(_, bits):
    """The place of the lowest bit that is set."""

    def code(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), code


def _row(array):
    """That type of array, if its numbers lie side by side."""
    if array.ndim != 1 or array.layout != "C":
        raise TypingError(f"lanes need one contiguous row, not {array}")
    return array


def _place(context, builder, signature, arguments):
    """(pointer to the lanes from array[at] on, how many numbers the array has from there)."""
    array_type = signature.args[0]
    array, at = context.make_array(array_type)(context, builder, arguments[0]), arguments[1]
    lanes = ir.VectorType(context.get_data_type(array_type.dtype), LANES)
    left = builder.sub(cgutils.unpack_tuple(builder, array.shape)[0], at)
    return builder.bitcast(builder.gep(array.data, [at]), lanes.as_pointer()), left


def _number_bytes(signature):
    return signature.args[0].dtype.bitwidth // 8


def _splat(builder, number):
    """That number in all lanes."""
    lanes = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
    return builder.shuffle_vector(builder.insert_element(lanes, number, ir.IntType(32)(0)), lanes, first)
