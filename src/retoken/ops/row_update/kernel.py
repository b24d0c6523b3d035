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
AHEAD = 1024
"""Bytes of a row that are asked for early; once a row is being read, the processor itself looks ahead."""


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


def scratch(row: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A thread's own row in float32, [1, *row], and as bits, [1, N]: of the weight, and of the gradient."""
    w, g = np.empty((1, *row), F32), np.empty((1, *row), F32)
    return w, w.view(U32).reshape(1, -1), g, g.view(U32).reshape(1, -1)


@_compiled
def adamw_float32(weight, first, second, grad, ids, touches, lines, settled, log_decay, rates, start, stop):
    """`naive.adamw` for [V, N] float32, rows ids[start:stop]."""
    lead, ahead = _lead_and_ahead(weight)
    for i in range(start, stop):
        r = ids[i]
        if i + lead < stop:
            for byte in range(0, ahead, LINE):
                _prefetch(weight, ids[i + lead], byte)
                _prefetch(first, ids[i + lead], byte)
                _prefetch(second, ids[i + lead], byte)
        step, root = _step_and_root(r, touches, lines, rates)
        factor = _decay_factor(r, settled, log_decay)
        _adamw_row(weight, r, first, second, r, grad, i, step, root, factor, rates)


@_compiled
def adamw_bfloat16(
    weight, first, second, grad, ids, touches, lines, settled, log_decay, rates, key, place, wide, start, stop
):
    """The same for bfloat16 weights and gradients as uint16, rounded stochastically; `wide`: `scratch`."""
    w, w_bits, g, g_bits = wide
    lead, ahead = _lead_and_ahead(weight)
    for i in range(start, stop):
        r = ids[i]
        if i + lead < stop:
            for byte in range(0, ahead, LINE):
                _prefetch(weight, ids[i + lead], byte)
                _prefetch(first, ids[i + lead], byte)
                _prefetch(second, ids[i + lead], byte)
        step, root = _step_and_root(r, touches, lines, rates)
        factor = _decay_factor(r, settled, log_decay)
        _widen(weight, r, w_bits)
        _widen(grad, i, g_bits)
        _adamw_row(w, 0, first, second, r, g, 0, step, root, factor, rates)
        _round_row(w_bits, weight, r, _row_key(key, r, place), place[2])


@_compiled
def row_wise_float32(weight, mean_sq, grad, ids, touches, lines, settled, log_decay, rates, start, stop):
    """`naive.row_wise` for [V, P, D] float32 with [V, P] states, rows ids[start:stop]."""
    lead, ahead = _lead_and_ahead(weight)
    for i in range(start, stop):
        r = ids[i]
        if i + lead < stop:
            for byte in range(0, ahead, LINE):
                _prefetch(weight, ids[i + lead], byte)
        step, root = _step_and_root(r, touches, lines, rates)
        factor = _decay_factor(r, settled, log_decay)
        _row_wise_row(weight, r, mean_sq, r, grad, i, step, root, factor, rates)


@_compiled
def row_wise_bfloat16(
    weight, mean_sq, grad, ids, touches, lines, settled, log_decay, rates, key, place, wide, start, stop
):
    """The same for bfloat16 weights and gradients as uint16, rounded stochastically; `wide`: `scratch`."""
    w, w_bits, g, g_bits = wide
    lead, ahead = _lead_and_ahead(weight)
    for i in range(start, stop):
        r = ids[i]
        if i + lead < stop:
            for byte in range(0, ahead, LINE):
                _prefetch(weight, ids[i + lead], byte)
        step, root = _step_and_root(r, touches, lines, rates)
        factor = _decay_factor(r, settled, log_decay)
        _widen(weight, r, w_bits)
        _widen(grad, i, g_bits)
        _row_wise_row(w, 0, mean_sq, r, g, 0, step, root, factor, rates)
        _round_row(w_bits, weight, r, _row_key(key, r, place), place[2])


@_compiled
def decay_float32(weight, ids, settled, log_decay, start, stop):
    """`naive.decay` for [V, N] float32, rows ids[start:stop]."""
    for i in range(start, stop):
        r = ids[i]
        if settled[r] != log_decay:
            factor = _decay_factor(r, settled, log_decay)
            for j in range(weight.shape[1]):
                weight[r, j] = factor * weight[r, j]


@_compiled
def decay_bfloat16(weight, ids, settled, log_decay, key, place, wide, start, stop):
    """The same for bfloat16 weights as uint16, stochastically rounded; `wide` is a `scratch`."""
    w, w_bits, _, _ = wide
    for i in range(start, stop):
        r = ids[i]
        if settled[r] != log_decay:
            factor = _decay_factor(r, settled, log_decay)
            _widen(weight, r, w_bits)
            for j in range(w.shape[1]):
                w[0, j] = factor * w[0, j]
            _round_row(w_bits, weight, r, _row_key(key, r, place), place[2])


@_compiled
def _adamw_row(weight, at, first, second, r, grad, i, step, root, factor, rates):
    beta2, eps = F32(rates[2]), F32(rates[3])
    rest1, rest2 = F32(1 - rates[1]), F32(1 - rates[2])
    for j in range(weight.shape[1]):
        x = grad[i, j]
        m = first[r, j] + rest1 * (x - first[r, j])
        v = beta2 * second[r, j] + rest2 * x * x
        first[r, j] = m
        second[r, j] = v
        weight[at, j] = factor * weight[at, j] - step * m / (math.sqrt(v) * root + eps)


@_compiled
def _row_wise_row(weight, at, mean_sq, r, grad, i, step, root, factor, rates):
    beta2, rest2, eps = F32(rates[2]), F32(1 - rates[2]), F32(rates[3])
    width = weight.shape[2]
    for part in range(weight.shape[1]):
        v = beta2 * mean_sq[r, part] + rest2 * (_sum_of_squares(grad, i, part) / F32(width))
        mean_sq[r, part] = v
        scale = step / (math.sqrt(v) * root + eps)
        for j in range(width):
            weight[at, part, j] = factor * weight[at, part, j] - scale * grad[i, part, j]


@_compiled(fastmath={"reassoc"})
def _sum_of_squares(grad, i, part):
    """In vector lanes, which is another order than left to right."""
    total = F32(0)
    for j in range(grad.shape[2]):
        total += grad[i, part, j] * grad[i, part, j]
    return total


@_compiled
def _lead_and_ahead(weight):
    """How many rows ahead to ask, and for how many bytes: short rows are over before memory has answered."""
    row = weight.size // weight.shape[0] * weight.itemsize
    return 2 + 2 * AHEAD // row, min(row, AHEAD)


@_compiled
def _step_and_root(r, touches, lines, rates):
    line = 0
    if touches.shape[0] > 0:
        line = min(touches[r], lines.shape[0] - 1)
        touches[r] += 1
    return F32(rates[0] * lines[line, 0]), F32(lines[line, 1])


@_compiled
def _decay_factor(r, settled, log_decay):
    factor = F32(1)
    if settled.shape[0] > 0:
        factor = F32(math.exp(log_decay - settled[r]))
        settled[r] = log_decay
    return factor


@_compiled
def _widen(narrow, row, bits):
    for j in range(bits.shape[1]):
        bits[0, j] = U32(narrow[row, j]) << U32(16)


@_compiled
def _row_key(key, r, place):
    x = U64(place[0] + r * place[1] + 1) * GOLDEN64 + key
    x = (x ^ (x >> U64(30))) * MIX64_A
    x = (x ^ (x >> U64(27))) * MIX64_B
    return x ^ (x >> U64(31))


@_compiled
def _round_row(bits, weight, r, key, first_column):
    """`noise.round_stochastically` with `noise.noise_bits`."""
    low, high = U32(key & U64(0xFFFFFFFF)), U32(key >> U64(32))
    for j in range(bits.shape[1]):
        x = U32(U32(j + first_column) * GOLDEN32 + low)
        x = U32(U32(x ^ U32(x >> U32(16))) * MIX32_A) ^ high
        x = U32(U32(x ^ U32(x >> U32(15))) * MIX32_B)
        size = U32(bits[0, j] & U32(0x7FFFFFFF))
        drawn = U32(x >> U32(16)) if size < U32(INFINITY) else U32(0)
        rounded = U32(bits[0, j] + drawn)
        rounded = U32(rounded | U32(QUIET)) if size > U32(INFINITY) else rounded
        weight[r, j] = U16(rounded >> U32(16))
