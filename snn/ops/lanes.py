"""SIMD vectors ("lanes") in the processor's registers: a type for kernels that numba itself does not have.

A kernel keeps sums in lanes, or states that it carries through many steps; otherwise these would go to memory and back
after every few numbers. Lanes can also be written past the caches. LLVM splits them into the registers of the machine:
16 float32 fill one register of AVX-512, or two of AVX2. Each function becomes the few instructions it stands for.
+ - * /, comparisons and abs work lane by lane. A single number as an operand is converted to the type of the lanes and
used in all of them. Results are rounded as they are for single numbers: nothing is contracted or reordered.

In an inner loop, use lanes on the kernel's own arrays. For a view of a row, or an array passed to another compiled
function, numba may count references. It does so with locked instructions, and each of these waits until all stores past
the caches have arrived.
"""

import operator

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.errors import TypingError
from numba.extending import intrinsic, models, overload, register_jitable, register_model

LANES = 64  # for sums: as many as a word has bits
LINE = 16  # for states, ten forward and up to twenty backward: as many float32 as a cache line holds
CACHE_LINE_BYTES = 64
FOR_READING = 0, 2, 1  # arguments of llvm.prefetch: to be read, kept in all caches but the first, of data


def filled(channels: int) -> float:
    """Return the share of the lanes of whole slices that hold a channel."""
    return channels / (-(-channels // LANES) * LANES)


@register_jitable
def scratch(array, number):
    """Return uninitialised memory for so many numbers of the array's type, which begins on a cache line."""
    line = CACHE_LINE_BYTES // array.itemsize
    room = np.empty(number + line, array.dtype)
    begin = (line - room.ctypes.data % CACHE_LINE_BYTES // array.itemsize) % line
    return room[begin : begin + number]


class Lanes(types.Type):
    """A SIMD vector of `size` numbers of one type, or of booleans."""

    def __init__(self, number: types.Type, size: int):
        self.number, self.size = number, size
        super().__init__(name=f"Lanes({number}, {size})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager, lanes):
        super().__init__(manager, lanes, ir.VectorType(manager.lookup(lanes.number).get_value_type(), lanes.size))


@intrinsic(prefer_literal=True)
def zeros(_, array, size):
    """Return lanes of zeros, of the array's type; `size` is LANES or LINE."""
    lanes = Lanes(array.dtype, size.literal_value)
    return lanes(array, size), lambda context, _, signature, __: context.get_constant_null(lanes)


@intrinsic(prefer_literal=True)
def load(_, array, at, size):
    """Return array[at : at + size], which must lie within the array."""

    def code(context, builder, signature, arguments):
        pointer = _place(context, builder, signature, arguments, signature.return_type)
        return builder.load(pointer, align=_number_bytes(signature))

    return Lanes(array.dtype, size.literal_value)(_contiguous(array), types.intp, size), code


@intrinsic(prefer_literal=True)
def load_rows(_, array, at, stride, number):
    """Return a tuple of `number` lanes of LINE, each `stride` after the one before."""
    lanes = Lanes(array.dtype, LINE)

    def code(context, builder, signature, arguments):
        array, at, stride, _ = arguments
        rows = []
        for _ in range(number.literal_value):
            pointer = _place(context, builder, signature, (array, at), lanes)
            rows.append(builder.load(pointer, align=_number_bytes(signature)))
            at = builder.add(at, stride)
        return context.make_tuple(builder, signature.return_type, rows)

    rows = types.BaseTuple.from_types([lanes] * number.literal_value)
    return rows(_contiguous(array), types.intp, types.intp, number), code


@intrinsic
def store(_, array, at, lanes):
    """Write the lanes to array[at...], where there must be room for all of them."""

    def code(context, builder, signature, arguments):
        pointer = _place(context, builder, signature, arguments, lanes)
        builder.store(arguments[2], pointer, align=_number_bytes(signature))
        return context.get_dummy_value()

    return types.none(_contiguous(array), types.intp, lanes), code


@intrinsic
def store_past(_, array, at, lanes):
    """Store past the caches. `at` must begin a cache line; other threads see the numbers only after `fence`."""

    def code(context, builder, signature, arguments):
        pointer = _place(context, builder, signature, arguments, lanes)
        stored = builder.store(arguments[2], pointer, align=CACHE_LINE_BYTES)
        stored.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.none(_contiguous(array), types.intp, lanes), code


@intrinsic
def fence(_):
    """Make all threads see what was stored before this call no later than what is stored after it."""

    def code(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), code


@intrinsic(prefer_literal=True)
def load_part(_, array, at, left, size):
    """Load as `load` does; where fewer than `size` numbers are left (at least one), fill up with zeros."""

    def code(context, builder, signature, arguments):
        pointer, left = _place(context, builder, signature, arguments, signature.return_type), arguments[2]
        of = context.get_value_type(signature.return_type)
        with builder.if_else(builder.icmp_signed(">=", left, left.type(of.count)), likely=True) as (whole, part):
            with whole:
                there = builder.load(pointer, align=_number_bytes(signature)), builder.block
            with part:
                room = cgutils.alloca_once(builder, of)
                builder.store(ir.Constant(of, None), room)
                cgutils.raw_memcpy(builder, room, pointer, left, _number_bytes(signature))
                filled_up = builder.load(room), builder.block
        lanes = builder.phi(of)
        lanes.add_incoming(*there)
        lanes.add_incoming(*filled_up)
        return lanes

    return Lanes(array.dtype, size.literal_value)(_contiguous(array), types.intp, types.intp, size), code


@intrinsic
def store_part(_, array, at, left, lanes):
    """Store as `store` does; where there is room for fewer numbers, write only the first `left` (at least one)."""

    def code(context, builder, signature, arguments):
        pointer, (left, lanes_) = _place(context, builder, signature, arguments, lanes), arguments[2:]
        with builder.if_else(builder.icmp_signed(">=", left, left.type(lanes.size)), likely=True) as (whole, part):
            with whole:
                builder.store(lanes_, pointer, align=_number_bytes(signature))
            with part:
                room = cgutils.alloca_once_value(builder, lanes_)
                cgutils.raw_memcpy(builder, pointer, room, left, _number_bytes(signature))
        return context.get_dummy_value()

    return types.none(_contiguous(array), types.intp, types.intp, lanes), code


@register_jitable
def store_rows(array, at, stride, left, rows):
    """Store a tuple of lanes as `store_part` does, each `stride` after the one before."""
    for k in range(len(rows)):
        store_part(array, at + k * stride, left, rows[k])


@intrinsic(prefer_literal=True)
def prefetch(_, array, at, size):
    """Ask for array[at : at + size] to be brought to the caches; it may lie beyond the array."""
    lanes = Lanes(array.dtype, size.literal_value)

    def code(context, builder, signature, arguments):
        pointer = _place(context, builder, signature, arguments, lanes)
        bytes_, number = builder.bitcast(pointer, ir.IntType(8).as_pointer()), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [bytes_.type, *[number] * 3])
        fetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for line in range(0, lanes.size * _number_bytes(signature), CACHE_LINE_BYTES):
            builder.call(fetch, [builder.gep(bytes_, [ir.IntType(32)(line)]), *map(number, FOR_READING)])
        return context.get_dummy_value()

    return types.none(_contiguous(array), types.intp, size), code


def _lanewise(operation, instruction, gives_truths=False):
    """Have numba apply a Python operator to lanes, or to lanes and a number."""

    @intrinsic
    def apply(_, a, b):
        lanes = a if isinstance(a, Lanes) else b

        def code(context, builder, signature, arguments):
            of = context.get_value_type(lanes)
            return instruction(builder, *(_in_lanes(builder, value, of) for value in arguments))

        result = Lanes(types.boolean, lanes.size) if gives_truths else lanes
        return result(_operand(a, lanes), _operand(b, lanes)), code

    @overload(operation)
    def typed(a, b):
        if isinstance(a, Lanes) or isinstance(b, Lanes):
            return lambda a, b: apply(a, b)
        return None  # leaves other types to numba


_lanewise(operator.add, ir.IRBuilder.fadd)
_lanewise(operator.sub, ir.IRBuilder.fsub)
_lanewise(operator.mul, ir.IRBuilder.fmul)
_lanewise(operator.truediv, ir.IRBuilder.fdiv)
_lanewise(operator.gt, lambda builder, a, b: builder.fcmp_ordered(">", a, b), gives_truths=True)
_lanewise(operator.ge, lambda builder, a, b: builder.fcmp_ordered(">=", a, b), gives_truths=True)
_lanewise(operator.lt, lambda builder, a, b: builder.fcmp_ordered("<", a, b), gives_truths=True)
_lanewise(operator.le, lambda builder, a, b: builder.fcmp_ordered("<=", a, b), gives_truths=True)


def _of_each(name):
    """Return a function that applies an intrinsic of LLVM to each lane."""

    @intrinsic
    def apply(_, lanes):
        def code(context, builder, signature, arguments):
            of = arguments[0].type
            kind = ir.FunctionType(of, [of])
            full_name = f"llvm.{name}.v{of.count}{of.element.intrinsic_name}"
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, full_name), arguments)

        return lanes(lanes), code

    return apply


_magnitude, exponential = map(_of_each, ("fabs", "exp"))


@intrinsic
def _negative(_, lanes):
    return lanes(lanes), lambda context, builder, _, arguments: builder.fneg(arguments[0])


def _of_lanes(operation, apply):
    """Have numba apply a Python operator of one operand to lanes."""

    @overload(operation)
    def typed(lanes):
        if isinstance(lanes, Lanes):
            return lambda lanes: apply(lanes)
        return None  # leaves other types to numba


_of_lanes(abs, _magnitude)
_of_lanes(operator.neg, _negative)


@intrinsic
def where(_, truths, a, b):
    """Return, lane by lane, a where true and b elsewhere; one of the two may be a number."""
    lanes = a if isinstance(a, Lanes) else b

    def code(context, builder, signature, arguments):
        of = context.get_value_type(lanes)
        return builder.select(arguments[0], *(_in_lanes(builder, value, of) for value in arguments[1:]))

    return lanes(truths, _operand(a, lanes), _operand(b, lanes)), code


@intrinsic
def add_product(_, lanes, number, others):
    """Return lanes + number · others, rounded once where the machine can. `number` may be lanes, too."""

    def code(context, builder, signature, arguments):
        to, number, others = arguments
        product = builder.fmul(_in_lanes(builder, number, to.type), others, flags=("contract",))
        return builder.fadd(to, product, flags=("contract",))

    return lanes(lanes, _operand(number, lanes), lanes), code


@intrinsic
def total(_, lanes):
    """Return the sum of the lanes by adding their two halves until one is left; their number is a power of two."""

    def code(context, builder, signature, arguments):
        (value,) = arguments
        while (half := value.type.count // 2) > 0:
            places = [ir.Constant(ir.VectorType(ir.IntType(32), half), list(range(k, k + half))) for k in (0, half)]
            value = builder.fadd(*(builder.shuffle_vector(value, value, place) for place in places))
        return builder.extract_element(value, ir.IntType(32)(0))

    return lanes.number(lanes), code


@intrinsic
def unlike(_, lanes, number):
    """Return a word of LANES bits: bit k is set if lane k differs from the number."""

    def code(context, builder, signature, arguments):
        lanes, number = arguments
        bits = builder.fcmp_unordered("!=", lanes, _in_lanes(builder, number, lanes.type))
        return builder.bitcast(bits, ir.IntType(LANES))

    return types.uint64(Lanes(lanes.number, LANES), lanes.number), code


@intrinsic
def word(_, truths):
    """Return LINE booleans as a word of bits."""
    bits = ir.IntType(LINE)
    return types.uint16(truths), lambda context, builder, _, arguments: builder.bitcast(arguments[0], bits)


@intrinsic
def ones(_, bits):
    """Return how many bits are set."""
    return types.int64(types.uint64), lambda context, builder, _, arguments: builder.ctpop(arguments[0])


@intrinsic
def lowest(_, bits):
    """Return the place of the lowest bit that is set."""

    def code(context, builder, signature, arguments):
        return builder.cttz(arguments[0], ir.IntType(1)(1))

    return types.int64(types.uint64), code


def _contiguous(array):
    """Return the type of an array whose numbers lie side by side; `at` counts them over any number of axes."""
    if array.layout != "C":
        raise TypingError(f"lanes need a contiguous array, not {array}")
    return array


def _place(context, builder, signature, arguments, lanes):
    """Return a pointer to array[at] as lanes of this type."""
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), context.get_value_type(lanes).as_pointer())


def _number_bytes(signature):
    return signature.args[0].dtype.bitwidth // 8


def _operand(kind, lanes):
    """Return the type of an operand beside lanes: the same lanes, or a number of their type."""
    if isinstance(kind, Lanes) and kind != lanes:
        raise TypingError(f"{kind} beside {lanes}")
    return kind if isinstance(kind, Lanes) else lanes.number


def _in_lanes(builder, value, of):
    """Return the value of an operand as lanes; a number is copied into all of them."""
    if value.type == of:
        return value
    undefined = ir.Constant(of, ir.Undefined)
    first = ir.Constant(ir.VectorType(ir.IntType(32), of.count), None)
    return builder.shuffle_vector(builder.insert_element(undefined, value, ir.IntType(32)(0)), undefined, first)
