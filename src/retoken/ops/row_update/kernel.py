"""The updates for a CPU, compiled by numba: one pass over memory, each touched row read and written once.

Importing this imports numba; a kernel compiles when first called (1 to 3 seconds) and comes from numba's
cache in later processes. Kernels start no threads of their own and release Python's lock: `threads.py` gives
each thread a range of rows. So they share nothing with OpenMP's threads or autograd's, and survive a fork.

Row ids are not checked here. Arrays are C-contiguous; bfloat16 comes as uint16.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
from __future__ import annotations

import functools
import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from retoken.ops.row_update import noise

F32, U16, U32, U64 = np.float32, np.uint16, np.uint32, np.uint64
GOLDEN64, MIX64_A, MIX64_B = U64(noise.GOLDEN64), U64(noise.MIX64_A), U64(noise.MIX64_B)
GOLDEN32, MIX32_A, MIX32_B = U32(noise.GOLDEN32), U32(noise.MIX32_A), U32(noise.MIX32_B)
INFINITY, QUIET = 0x7F800000, 0x400000
"""Bits of float32: infinity, above which is NaN; and what keeps a NaN one when its low half is cut."""
LINE = 64
"""Bytes of a cache line."""
AHEAD = 2048
"""Bytes, about, that are asked for before they are needed; at least a row."""
CHUNK = 256
"""Numbers computed between two rounds of asking for as many of the next row: the processor itself looks ahead
within a row, not beyond it."""


def _compiled(function=None, **options):
    """`njit` without reference counts (_nrt), which each row would change in memory that all threads share.

    Division by zero must not raise, or no loop vectorizes. No fastmath: a NaN stays one, nothing is
    reordered.
    """
    if function is None:
        return functools.partial(_compiled, **options)
    decorate = functools.partial(njit, nogil=True, error_model="numpy", _nrt=False, **options)
    try:
        return decorate(cache=True)(function)
    except RuntimeError:  # numba finds no folder it may write its cache to
        return decorate()(function)


@intrinsic
def _prefetch(typing, array, row, byte):
    """Ask for the cache line that many bytes into a row, to be written."""
    signature = types.void(array, types.intp, types.intp)

    def generate(context, builder, signature, arguments):
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        start = [arguments[1]] + [context.get_constant(types.intp, 0)] * (array.ndim - 1)
        place = cgutils.get_item_pointer(context, builder, signature.args[0], view, start)
        place = builder.gep(builder.bitcast(place, ir.IntType(8).as_pointer()), [arguments[2]])
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [place, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return signature, generate


def scratch() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A thread's own chunk in float32 and as bits, twice: of the weight, and of the gradient."""
    w, g = np.empty(CHUNK, F32), np.empty(CHUNK, F32)
    return w, w.view(U32), g, g.view(U32)


@_compiled
def adamw_float32(weight, first, second, grad, ids, touches, lines, settled, log_decay, rates, start, stop):
    """`naive.adamw` for [V, N] float32, rows ids[start:stop]."""
    lead, width, beta2, eps = _lead(weight), weight.shape[1], F32(rates[2]), F32(rates[3])
    rest1, rest2 = F32(1 - rates[1]), F32(1 - rates[2])
    for i in range(start, stop):
        r, ahead = ids[i], ids[min(i + lead, stop - 1)]
        step, root = _step_and_root(r, ahead, touches, lines, rates)
        factor = _decay_factor(r, ahead, settled, log_decay)
        for c in range(0, width, CHUNK):
            e = min(c + CHUNK, width)
            for byte in range(4 * c, 4 * e, LINE):
                _prefetch(weight, ahead, byte * weight.itemsize // 4)
                _prefetch(first, ahead, byte)
                _prefetch(second, ahead, byte)
            w, g = weight[r, c:e], grad[i, c:e]
            _adamw(w, first[r, c:e], second[r, c:e], g, step, root, factor, beta2, rest1, rest2, eps)


@_compiled
def adamw_bfloat16(
    weight, first, second, grad, ids, touches, lines, settled, log_decay, rates, key, place, wide, start, stop
):
    """The same for bfloat16 weights and gradients as uint16, rounded stochastically; `wide`: `scratch`."""
    w, w_bits, g, g_bits = wide
    lead, width, beta2, eps = _lead(weight), weight.shape[1], F32(rates[2]), F32(rates[3])
    rest1, rest2 = F32(1 - rates[1]), F32(1 - rates[2])
    for i in range(start, stop):
        r, ahead = ids[i], ids[min(i + lead, stop - 1)]
        step, root = _step_and_root(r, ahead, touches, lines, rates)
        factor, row_key = _decay_factor(r, ahead, settled, log_decay), _row_key(key, r, place)
        for c in range(0, width, CHUNK):
            e = min(c + CHUNK, width)
            for byte in range(4 * c, 4 * e, LINE):
                _prefetch(weight, ahead, byte * weight.itemsize // 4)
                _prefetch(first, ahead, byte)
                _prefetch(second, ahead, byte)
            _widen(weight[r, c:e], w_bits)
            _widen(grad[i, c:e], g_bits)
            m, v = first[r, c:e], second[r, c:e]
            _adamw(w[: e - c], m, v, g, step, root, factor, beta2, rest1, rest2, eps)
            _round(w_bits, weight[r, c:e], row_key, place[2] + c)


@_compiled
def row_wise_float32(weight, mean_sq, grad, ids, touches, lines, settled, log_decay, rates, start, stop):
    """`naive.row_wise` for [V, N] float32 with [V, P] states of N / P numbers each, rows ids[start:stop]."""
    lead, width = _lead(weight), weight.shape[1] // mean_sq.shape[1]
    for i in range(start, stop):
        r, ahead = ids[i], ids[min(i + lead, stop - 1)]
        step, root = _step_and_root(r, ahead, touches, lines, rates)
        factor = _decay_factor(r, ahead, settled, log_decay)
        for part in range(mean_sq.shape[1]):
            begin, end = part * width, (part + 1) * width
            square = _sum_of_squares(grad[i, begin:end])
            scale = _row_wise_scale(mean_sq, r, part, square / F32(width), step, root, rates)
            for c in range(begin, end, CHUNK):
                e = min(c + CHUNK, end)
                for byte in range(c * weight.itemsize, e * weight.itemsize, LINE):
                    _prefetch(weight, ahead, byte)
                _subtract(weight[r, c:e], grad[i, c:e], scale, factor)


@_compiled
def row_wise_bfloat16(
    weight, mean_sq, grad, ids, touches, lines, settled, log_decay, rates, key, place, wide, start, stop
):
    """The same for bfloat16 weights and gradients as uint16, rounded stochastically; `wide`: `scratch`."""
    w, w_bits, g, g_bits = wide
    lead, width = _lead(weight), weight.shape[1] // mean_sq.shape[1]
    for i in range(start, stop):
        r, ahead = ids[i], ids[min(i + lead, stop - 1)]
        step, root = _step_and_root(r, ahead, touches, lines, rates)
        factor, row_key = _decay_factor(r, ahead, settled, log_decay), _row_key(key, r, place)
        for part in range(mean_sq.shape[1]):
            begin, end = part * width, (part + 1) * width
            square = F32(0)
            for c in range(begin, end, CHUNK):
                e = min(c + CHUNK, end)
                _widen(grad[i, c:e], g_bits)
                square += _sum_of_squares(g[: e - c])
            scale = _row_wise_scale(mean_sq, r, part, square / F32(width), step, root, rates)
            for c in range(begin, end, CHUNK):
                e = min(c + CHUNK, end)
                for byte in range(c * weight.itemsize, e * weight.itemsize, LINE):
                    _prefetch(weight, ahead, byte)
                _widen(weight[r, c:e], w_bits)
                _widen(grad[i, c:e], g_bits)
                _subtract(w[: e - c], g, scale, factor)
                _round(w_bits, weight[r, c:e], row_key, place[2] + c)


@_compiled
def decay_float32(weight, ids, settled, log_decay, start, stop):
    """`naive.decay` for [V, N] float32, rows ids[start:stop]."""
    for i in range(start, stop):
        r = ids[i]
        if settled[r] != log_decay:
            factor = _decay_factor(r, r, settled, log_decay)
            for j in range(weight.shape[1]):
                weight[r, j] = factor * weight[r, j]


@_compiled
def decay_bfloat16(weight, ids, settled, log_decay, key, place, wide, start, stop):
    """The same for bfloat16 weights as uint16, rounded stochastically; `wide`: `scratch`."""
    w, w_bits, _, _ = wide
    for i in range(start, stop):
        r = ids[i]
        if settled[r] != log_decay:
            factor, row_key = _decay_factor(r, r, settled, log_decay), _row_key(key, r, place)
            for c in range(0, weight.shape[1], CHUNK):
                e = min(c + CHUNK, weight.shape[1])
                _widen(weight[r, c:e], w_bits)
                for j in range(e - c):
                    w[j] = factor * w[j]
                _round(w_bits, weight[r, c:e], row_key, place[2] + c)


@_compiled
def _adamw(w, m, v, g, step, root, factor, beta2, rest1, rest2, eps):
    for j in range(w.shape[0]):
        x = g[j]
        first = m[j] + rest1 * (x - m[j])
        second = beta2 * v[j] + rest2 * x * x
        m[j] = first
        v[j] = second
        w[j] = factor * w[j] - step * first / (math.sqrt(second) * root + eps)


@_compiled
def _row_wise_scale(mean_sq, r, part, mean, step, root, rates):
    v = F32(rates[2]) * mean_sq[r, part] + F32(1 - rates[2]) * mean
    mean_sq[r, part] = v
    return step / (math.sqrt(v) * root + F32(rates[3]))


@_compiled
def _subtract(w, g, scale, factor):
    for j in range(w.shape[0]):
        w[j] = factor * w[j] - scale * g[j]


@_compiled(fastmath={"reassoc"})
def _sum_of_squares(x):
    """In vector lanes, which is another order than left to right."""
    total = F32(0)
    for j in range(x.shape[0]):
        total += x[j] * x[j]
    return total


@_compiled
def _lead(weight):
    """How many rows ahead to ask: short rows are over before memory has answered."""
    return 1 + AHEAD // (weight.shape[1] * weight.itemsize)


@_compiled
def _step_and_root(r, ahead, touches, lines, rates):
    line = 0
    if touches.shape[0] > 0:
        _prefetch(touches, ahead, 0)
        line = min(touches[r], lines.shape[0] - 1)
        touches[r] += 1
    return F32(rates[0] * lines[line, 0]), F32(lines[line, 1])


@_compiled
def _decay_factor(r, ahead, settled, log_decay):
    factor = F32(1)
    if settled.shape[0] > 0:
        _prefetch(settled, ahead, 0)
        factor = F32(math.exp(log_decay - settled[r]))
        settled[r] = log_decay
    return factor


@_compiled
def _widen(narrow, bits):
    for j in range(narrow.shape[0]):
        bits[j] = U32(narrow[j]) << U32(16)


@_compiled
def _row_key(key, r, place):
    x = U64(place[0] + r * place[1] + 1) * GOLDEN64 + key
    x = (x ^ (x >> U64(30))) * MIX64_A
    x = (x ^ (x >> U64(27))) * MIX64_B
    return x ^ (x >> U64(31))


@_compiled
def _round(bits, row, key, first_column):
    """`noise.round_stochastically` with `noise.noise_bits`."""
    low, high = U32(key & U64(0xFFFFFFFF)), U32(key >> U64(32))
    for j in range(row.shape[0]):
        x = U32(U32(j + first_column) * GOLDEN32 + low)
        x = U32(U32(x ^ U32(x >> U32(16))) * MIX32_A) ^ high
        x = U32(U32(x ^ U32(x >> U32(15))) * MIX32_B)
        size = U32(bits[j] & U32(0x7FFFFFFF))
        drawn = U32(x >> U32(16)) if size < U32(INFINITY) else U32(0)
        rounded = U32(bits[j] + drawn)
        rounded = U32(rounded | U32(QUIET)) if size > U32(INFINITY) else rounded
        row[j] = U16(rounded >> U32(16))
