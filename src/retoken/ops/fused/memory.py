"""Compiled code that reads and writes memory by address, whatever type numbers have there.

A vector is `lanes.floats`: LANES of float32. Addresses are whole numbers; whoever passes one keeps the memory
alive, and has checked that it is there.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from retoken.ops.row_update.lanes import LANES, _call, _constants, _first, _vector, floats, words

_I8, _I16, _I32, _I64, _F32 = (*(ir.IntType(bits) for bits in (8, 16, 32, 64)), ir.FloatType())
_QUIET = 0x7FC00000
_F8_NAN = 0x7F


def _at(builder, address, kind):
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder, address, count, number):
    """IR: the first `count` numbers from an address on, zeros behind them."""
    empty = ir.Constant(_vector(number), None)
    name = f"llvm.masked.load.v{LANES}{number.intrinsic_name}.p0"
    place = _at(builder, address, _vector(number))
    return _call(builder, name, empty.type, place, _I32(1), _first(builder, count), empty)


def _float32(builder, found):
    return found


def _bfloat16(builder, found):
    high = builder.shl(builder.zext(found, _vector(_I32)), _constants(_I32, [16] * LANES))
    return builder.bitcast(high, _vector(_F32))


def _int8(builder, found):
    return builder.sitofp(builder.sext(found, _vector(_I32)), _vector(_F32))


def _float8(builder, found):
    """e4m3: its exponent and mantissa stand in float32's as they are, 120 powers of two too low."""
    wide = builder.zext(found, _vector(_I32))
    size = builder.and_(wide, _constants(_I32, [0x7F] * LANES))
    sign = builder.shl(builder.and_(wide, _constants(_I32, [0x80] * LANES)), _constants(_I32, [24] * LANES))
    low = builder.bitcast(builder.shl(size, _constants(_I32, [20] * LANES)), _vector(_F32))
    bits = builder.bitcast(builder.fmul(low, _constants(_F32, [2.0**120] * LANES)), _vector(_I32))
    is_nan = builder.icmp_unsigned("==", size, _constants(_I32, [_F8_NAN] * LANES))
    bits = builder.select(is_nan, _constants(_I32, [_QUIET] * LANES), bits)
    return builder.bitcast(builder.or_(bits, sign), _vector(_F32))


def _reader(number, convert):
    @intrinsic
    def read(typing, address, count):
        def generate(context, builder, signature, arguments):
            address, count = arguments
            return convert(builder, _load(builder, address, count, number))

        return floats(types.intp, types.intp), generate

    return read


read_float32 = _reader(_F32, _float32)
read_bfloat16 = _reader(_I16, _bfloat16)
read_int8 = _reader(_I8, _int8)
read_float8 = _reader(_I8, _float8)


@intrinsic
def read_words(typing, address, count):
    """`count` uint32, and zeros."""

    def generate(context, builder, signature, arguments):
        return _load(builder, *arguments, _I32)

    return words(types.intp, types.intp), generate


def _scalar(number, result):
    @intrinsic
    def read(typing, address):
        def generate(context, builder, signature, arguments):
            return builder.load(_at(builder, arguments[0], number), align=1)

        return result(types.intp), generate

    return read


read_index = _scalar(_I64, types.intp)
read_number = _scalar(_F32, types.float32)
read_word = _scalar(_I32, types.uint32)


def _store(builder, address, count, value):
    place = _at(builder, address, value.type)
    name = f"llvm.masked.store.v{LANES}{value.type.element.intrinsic_name}.p0"
    _call(builder, name, ir.VoidType(), value, place, _I32(1), _first(builder, count))


@intrinsic
def write_float32(typing, address, count, value):
    """Write the first `count` lanes."""

    def generate(context, builder, signature, arguments):
        _store(builder, *arguments)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, floats), generate


@intrinsic
def write_bfloat16(typing, address, count, value):
    """Write the first `count` lanes, rounded to nearest, ties to even; a NaN stays one."""

    def generate(context, builder, signature, arguments):
        address, count, value = arguments
        bits = builder.bitcast(value, _vector(_I32))
        odd = builder.and_(builder.lshr(bits, _constants(_I32, [16] * LANES)), _constants(_I32, [1] * LANES))
        rounded = builder.add(bits, builder.add(odd, _constants(_I32, [0x7FFF] * LANES)))
        is_nan = builder.fcmp_unordered("uno", value, value)
        rounded = builder.select(is_nan, _constants(_I32, [_QUIET] * LANES), rounded)
        high = builder.lshr(rounded, _constants(_I32, [16] * LANES))
        _store(builder, address, count, builder.trunc(high, _vector(_I16)))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, floats), generate


def _scalar_writer(number, kind):
    @intrinsic
    def write(typing, address, value):
        def generate(context, builder, signature, arguments):
            builder.store(arguments[1], _at(builder, arguments[0], number), align=1)
            return context.get_dummy_value()

        return types.void(types.intp, kind), generate

    return write


write_number = _scalar_writer(_F32, types.float32)
write_index = _scalar_writer(_I64, types.intp)


@intrinsic
def ask_line(typing, address):
    """Have the cache line of an address brought near, to be read."""

    def generate(context, builder, signature, arguments):
        place = _at(builder, arguments[0], _I8)
        _call(builder, "llvm.prefetch.p0", ir.VoidType(), place, _I32(0), _I32(3), _I32(1))
        return context.get_dummy_value()

    return types.void(types.intp), generate


@intrinsic
def will_need(typing, address, size):
    """madvise(MADV_WILLNEED) for whole pages: their reads start, nobody waits."""

    def generate(context, builder, signature, arguments):
        start = builder.inttoptr(arguments[0], _I8.as_pointer())
        return _call(builder, "madvise", _I32, start, arguments[1], _I32(3))

    return types.int32(types.intp, types.intp), generate


@intrinsic
def take_number(typing, address):
    """What stands at an address, which is then one more: no two threads get the same."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", _at(builder, arguments[0], _I64), _I64(1), "seq_cst")

    return types.intp(types.intp), generate


@intrinsic
def keep_lowest(typing, address, value):
    """Leave the lower of a number and what stands at an address, as unsigned ones."""

    def generate(context, builder, signature, arguments):
        builder.atomic_rmw("umin", _at(builder, arguments[0], _I64), arguments[1], "seq_cst")
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def call_all(typing, fork, part, data, threads):
    """`fork`(part, data, threads, 0), as GOMP_parallel is called: each thread calls part(data)."""

    def generate(context, builder, signature, arguments):
        fork, part, data, threads = arguments
        byte = _I8.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, byte, _I32, _I32])
        pointers = builder.inttoptr(part, byte), builder.inttoptr(data, byte)
        place = builder.inttoptr(fork, kind.as_pointer())
        builder.call(place, [*pointers, builder.trunc(threads, _I32), _I32(0)])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), generate
