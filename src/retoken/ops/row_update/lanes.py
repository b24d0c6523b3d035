"""Vectors of `LANES` numbers as values in compiled code: one load, one operation, one store for all of them.

A loop over numbers leaves it to the compiler when memory is asked for; here each block of a row asks for a
block of a later row and computes while that is on its way. LLVM makes of a vector what the processor has:
one register of 64 bytes, or several smaller ones. No fastmath: each lane rounds as one number would.

Values are `floats` (float32) and `words` (uint32); arithmetic between them, and with numbers of their type,
is written as for numbers.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
"""Numbers of a vector: a cache line of float32."""
_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()


class Lanes(types.Type):
    """The type of a vector, by the LLVM type of its numbers."""

    def __init__(self, number: ir.Type) -> None:
        self.number = number
        super().__init__(name=f"Lanes({number})")


floats, words = Lanes(_F32), Lanes(_I32)


@register_model(Lanes)
class _Model(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _vector(fe_type.number))


def _vector(number, lanes=LANES):
    return ir.VectorType(number, lanes)


def _constants(number, values):
    return ir.Constant(_vector(number, len(values)), [number(value) for value in values])


def _all(builder, number):
    """IR: the number in every lane."""
    first = builder.insert_element(ir.Constant(_vector(number.type), ir.Undefined), number, _I32(0))
    return builder.shuffle_vector(first, first, _constants(_I32, [0] * LANES))


def _call(builder, name, result, *arguments):
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _place(context, builder, signature, array, row, column):
    """IR: the address of a number of a 2-D array; of an element of a 1-D one, where there is no column."""
    view = context.make_array(signature)(context, builder, array)
    return cgutils.get_item_pointer(context, builder, signature, view, [row, column][: signature.ndim])


@intrinsic
def lanes_of(typing, x):
    """The number, float32 or uint32, in every lane."""
    kind = {types.float32: floats, types.uint32: words}[x]
    return kind(x), lambda context, builder, signature, arguments: _all(builder, arguments[0])


@intrinsic
def load(typing, array, row, column, count):
    """`count` numbers of a row from a column on, and zeros; uint16 are taken as bfloat16."""

    def generate(context, builder, signature, arguments):
        kind, (array, row, column, count) = signature.args[0], arguments
        number = _I16 if kind.dtype == types.uint16 else _F32
        place, empty = _place(context, builder, kind, array, row, column), ir.Constant(_vector(number), None)
        size, mask = _I32(kind.dtype.bitwidth // 8), _first(builder, count)
        name = f"llvm.masked.load.v{LANES}{number.intrinsic_name}.p0"
        found = _call(builder, name, empty.type, place, size, mask, empty)
        if number is _F32:
            return found
        high = builder.shl(builder.zext(found, _vector(_I32)), _constants(_I32, [16] * LANES))
        return builder.bitcast(high, _vector(_F32))

    return floats(array, types.intp, types.intp, types.intp), generate


@intrinsic
def store(typing, array, row, column, count, value):
    """Write the first `count` lanes into a row: floats into float32, the low halves of words into uint16."""

    def generate(context, builder, signature, arguments):
        kind, (array, row, column, count, value) = signature.args[0], arguments
        if kind.dtype == types.uint16:
            value = builder.trunc(value, _vector(_I16))
        place = _place(context, builder, kind, array, row, column)
        name = f"llvm.masked.store.v{LANES}{value.type.element.intrinsic_name}.p0"
        size = _I32(kind.dtype.bitwidth // 8)
        _call(builder, name, ir.VoidType(), value, place, size, _first(builder, count))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.intp, value), generate


def _first(builder, count):
    """IR: a mask of the first `count` lanes; a constant where `count` is one."""
    return builder.icmp_signed("<", _constants(_I64, range(LANES)), _all(builder, count))


@intrinsic
def ask_for(typing, array, row, column):
    """Have the cache line of a number, or of an element of a 1-D array, brought near, to be written."""

    def generate(context, builder, signature, arguments):
        place = _place(context, builder, signature.args[0], *arguments)
        place = builder.bitcast(place, ir.IntType(8).as_pointer())
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), place, _I32(1), _I32(3), _I32(1))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


@intrinsic
def root_of(typing, x):
    """The square root of each lane."""

    def generate(context, builder, signature, arguments):
        return _call(builder, f"llvm.sqrt.v{LANES}f32", arguments[0].type, arguments[0])

    return floats(floats), generate


@intrinsic
def bits_of(typing, x):
    """Floats as words."""
    return words(floats), lambda context, builder, signature, arguments: builder.bitcast(
        arguments[0], _vector(_I32)
    )


@intrinsic
def counted_from(typing, start):
    """start, start + 1, ... modulo 2^32."""

    def generate(context, builder, signature, arguments):
        low = builder.trunc(arguments[0], _I32)
        return builder.add(_all(builder, low), _constants(_I32, range(LANES)))

    return words(types.intp), generate


@intrinsic
def where_below(typing, a, b, yes, no):
    """Lane by lane, of words: `yes` where a < b, else `no`."""

    def generate(context, builder, signature, arguments):
        a, b, yes, no = arguments
        return builder.select(builder.icmp_unsigned("<", a, b), yes, no)

    return words(words, words, words, words), generate


@intrinsic
def sum_of(typing, x):
    """The sum of all lanes: the upper half is added to the lower one until one number is left."""

    def generate(context, builder, signature, arguments):
        (x,), lanes = arguments, LANES
        while lanes > 1:
            lanes //= 2
            lower, upper = (_constants(_I32, range(at, at + lanes)) for at in (0, lanes))
            x = builder.fadd(builder.shuffle_vector(x, x, lower), builder.shuffle_vector(x, x, upper))
        return builder.extract_element(x, _I32(0))

    return types.float32(floats), generate


@intrinsic
def sum_of_words(typing, x):
    """The sum of all lanes modulo 2^32."""

    def generate(context, builder, signature, arguments):
        total = builder.extract_element(arguments[0], _I32(0))
        for lane in range(1, LANES):
            total = builder.add(total, builder.extract_element(arguments[0], _I32(lane)))
        return total

    return types.uint32(words), generate


def _instruction(name):
    """An intrinsic of two vectors."""

    @intrinsic
    def combined(typing, a, b):
        return a(a, b), lambda context, builder, signature, arguments: getattr(builder, name)(*arguments)

    return combined


def _define(symbol, **names):
    """Give an operator its meaning for vectors, and for a vector and a number, by the type of numbers."""
    known = {
        kind: _instruction(names[str(kind.number)]) for kind in (floats, words) if str(kind.number) in names
    }

    @overload(symbol, inline="always")
    def choose(a, b):
        both = isinstance(a, Lanes), isinstance(b, Lanes)
        combined = known.get(a if both[0] else b)
        if combined is None:
            return None
        return {
            (True, True): lambda a, b: combined(a, b),
            (True, False): lambda a, b: combined(a, lanes_of(b)),
            (False, True): lambda a, b: combined(lanes_of(a), b),
        }[both]


_define(operator.add, float="fadd", i32="add")
_define(operator.sub, float="fsub", i32="sub")
_define(operator.mul, float="fmul", i32="mul")
_define(operator.truediv, float="fdiv")
_define(operator.and_, i32="and_")
_define(operator.or_, i32="or_")
_define(operator.xor, i32="xor")
_define(operator.rshift, i32="lshr")
