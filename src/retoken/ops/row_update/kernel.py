"""The updates for a CPU, compiled by numba: one pass over memory, each touched row read and written once.

Importing this imports numba; a kernel compiles when first called (1 to 3 seconds) and comes from a
cache in later processes. Kernels start no threads of their own and release Python's lock: `threads.py` gives
each thread ranges of rows. So they share nothing with OpenMP's threads or autograd's, and survive a fork.

A kernel serves both types of rows: float32, and bfloat16 that comes as uint16 and is rounded stochastically.
Row ids are not checked here. Arrays are C-contiguous.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from retoken.ops.compiled import compiled
from retoken.ops.row_update import noise
from retoken.ops.row_update.lanes import (
    LANES,
    ask_for,
    bits_of,
    counted_from,
    lanes_of,
    load,
    root_of,
    store,
    sum_of,
    where_below,
)

F32, U32, U64 = np.float32, np.uint32, np.uint64
GOLDEN64, MIX64_A, MIX64_B = U64(noise.GOLDEN64), U64(noise.MIX64_A), U64(noise.MIX64_B)
GOLDEN32, MIX32_A, MIX32_B = U32(noise.GOLDEN32), U32(noise.MIX32_A), U32(noise.MIX32_B)
INFINITY, QUIET = U32(0x7F800000), U32(0x400000)
"""Bits of float32: infinity, above which is NaN; and what keeps a NaN one when its low half is cut."""
AHEAD = 2048
"""Bytes, about, that are asked for before they are needed; at least a row."""


@compiled
def adamw(
    weight, first, second, grad, ids, touches, lines, settled, log_decay, rates, key, place, start, stop
):
    """`naive.adamw` for [V, N], rows ids[start:stop]."""
    lead, width, full = _lead(weight), weight.shape[1], weight.shape[1] // LANES * LANES
    shared = F32(1 - rates[1]), F32(rates[2]), F32(1 - rates[2]), F32(rates[3])
    for i in range(start, stop):
        r, ahead = ids[i], ids[min(i + lead, stop - 1)]
        own = _row_numbers(r, ahead, touches, lines, settled, log_decay, rates)
        row_key = _row_key(key, r, place)
        for c in range(0, full, LANES):
            ask_for(weight, ahead, c)
            ask_for(first, ahead, c)
            ask_for(second, ahead, c)
            w = _adamw(weight, first, second, grad, r, i, c, LANES, own, shared)
            _write(weight, r, c, LANES, w, row_key, place[2] + c)
        if full < width:
            w = _adamw(weight, first, second, grad, r, i, full, width - full, own, shared)
            _write(weight, r, full, width - full, w, row_key, place[2] + full)


@compiled
def row_wise(weight, mean_sq, grad, ids, touches, lines, settled, log_decay, rates, key, place, start, stop):
    """`naive.row_wise` for [V, N] with [V, P] states of N / P numbers each, rows ids[start:stop].

    While a part of a row is moved, the squares of the gradient of the part behind it are summed.
    """
    lead, parts = _lead(weight), mean_sq.shape[1]
    width = weight.shape[1] // parts
    full = width // LANES * LANES
    squares = _sum_of_squares(grad, start, width)
    for i in range(start, stop):
        r, ahead = ids[i], ids[min(i + lead, stop - 1)]
        step, root, factor = _row_numbers(r, ahead, touches, lines, settled, log_decay, rates)
        row_key = _row_key(key, r, place)
        ask_for(mean_sq, ahead, 0)
        for part in range(parts):
            scale = _row_wise_scale(mean_sq, r, part, squares / F32(width), step, root, rates)
            begin, last = part * width, part == parts - 1
            next_i, next_c = (min(i + 1, stop - 1), 0) if last else (i, begin + width)
            total = lanes_of(F32(0))
            for c in range(0, full, LANES):
                ask_for(weight, ahead, begin + c)
                w = factor * load(weight, r, begin + c, LANES) - scale * load(grad, i, begin + c, LANES)
                _write(weight, r, begin + c, LANES, w, row_key, place[2] + begin + c)
                g = load(grad, next_i, next_c + c, LANES)
                total = total + g * g
            if full < width:
                c, n = begin + full, width - full
                w = factor * load(weight, r, c, n) - scale * load(grad, i, c, n)
                _write(weight, r, c, n, w, row_key, place[2] + c)
                g = load(grad, next_i, next_c + full, n)
                total = total + g * g
            squares = sum_of(total)


@compiled
def decay(weight, ids, settled, log_decay, key, place, start, stop):
    """`naive.decay` for [V, N], rows ids[start:stop]."""
    width = weight.shape[1]
    for i in range(start, stop):
        r = ids[i]
        if settled[r] != log_decay:
            factor, row_key = _decay_factor(r, r, settled, log_decay), _row_key(key, r, place)
            for c in range(0, width, LANES):
                n = min(LANES, width - c)
                _write(weight, r, c, n, factor * load(weight, r, c, n), row_key, place[2] + c)


@compiled
def _adamw(weight, first, second, grad, r, i, c, n, own, shared):
    step, root, factor = own
    rest1, beta2, rest2, eps = shared
    g, m = load(grad, i, c, n), load(first, r, c, n)
    m = m + rest1 * (g - m)
    v = beta2 * load(second, r, c, n) + rest2 * g * g
    store(first, r, c, n, m)
    store(second, r, c, n, v)
    return factor * load(weight, r, c, n) - step * m / (root_of(v) * root + eps)


@compiled
def _row_wise_scale(mean_sq, r, part, mean, step, root, rates):
    v = F32(rates[2]) * mean_sq[r, part] + F32(1 - rates[2]) * mean
    mean_sq[r, part] = v
    return step / (math.sqrt(v) * root + F32(rates[3]))


@compiled
def _sum_of_squares(grad, i, width):
    total = lanes_of(F32(0))
    for c in range(0, width, LANES):
        g = load(grad, i, c, min(LANES, width - c))
        total = total + g * g
    return sum_of(total)


@compiled
def _lead(weight):
    """How many rows ahead to ask: short rows are over before memory has answered."""
    return 1 + AHEAD // (weight.shape[1] * weight.itemsize)


@compiled
def _row_numbers(r, ahead, touches, lines, settled, log_decay, rates):
    """lr with the first moment's correction, the second's, and the decay; counts this touch."""
    line = 0
    if touches.shape[0] > 0:
        ask_for(touches, ahead, 0)
        line = min(touches[r], lines.shape[0] - 1)
        touches[r] += 1
    factor = _decay_factor(r, ahead, settled, log_decay)
    return F32(rates[0] * lines[line, 0]), F32(lines[line, 1]), factor


@compiled
def _decay_factor(r, ahead, settled, log_decay):
    factor = F32(1)
    if settled.shape[0] > 0:
        ask_for(settled, ahead, 0)
        factor = F32(math.exp(log_decay - settled[r]))
        settled[r] = log_decay
    return factor


@compiled
def _row_key(key, r, place):
    x = U64(place[0] + r * place[1] + 1) * GOLDEN64 + key
    x = (x ^ (x >> U64(30))) * MIX64_A
    x = (x ^ (x >> U64(27))) * MIX64_B
    return x ^ (x >> U64(31))


def _write(weight, r, c, n, w, row_key, column):
    """Store floats in a row's type; `column` is the place of the first among all that the token owns."""
    raise NotImplementedError("has a meaning in compiled code only")


@overload(_write, inline="always")
def _write_in_type(weight, r, c, n, w, row_key, column):
    if weight.dtype == types.float32:
        return lambda weight, r, c, n, w, row_key, column: store(weight, r, c, n, w)
    return lambda weight, r, c, n, w, row_key, column: store(weight, r, c, n, _rounded(w, row_key, column))


@compiled
def _rounded(w, row_key, column):
    """`noise.round_stochastically` with `noise.noise_bits`, as the low halves of words."""
    bits = bits_of(w)
    size = bits & U32(0x7FFFFFFF)
    drawn = bits + _drawn(row_key, column)
    not_finite = bits | where_below(lanes_of(INFINITY), size, lanes_of(QUIET), lanes_of(U32(0)))
    return where_below(size, lanes_of(INFINITY), drawn, not_finite) >> U32(16)


@compiled
def _drawn(row_key, column):
    low, high = U32(row_key & U64(0xFFFFFFFF)), U32(row_key >> U64(32))
    x = counted_from(column) * GOLDEN32 + low
    x = (x ^ (x >> U32(16))) * MIX32_A ^ high
    x = (x ^ (x >> U32(15))) * MIX32_B
    return x >> U32(16)
