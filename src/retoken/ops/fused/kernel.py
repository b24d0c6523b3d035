"""What the layers do with a token's rows, compiled for a CPU: each row is read from memory once.

Row e of position t starts at base + slots[t] * stride + e * row_bytes, its float32 scale, where the type has
one, at base + slots[t] * stride + scales + 4 * e. Arithmetic is float32. Kernels start no threads.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false
from __future__ import annotations

import math

import numpy as np

from retoken.ops.fused.memory import (
    read_bfloat16,
    read_float8,
    read_float32,
    read_index,
    read_int8,
    read_number,
    read_word,
    read_words,
    will_need,
    write_bfloat16,
    write_float32,
    write_index,
    write_number,
)
from retoken.ops.row_update.kernel import compiled
from retoken.ops.row_update.lanes import LANES, counted_from, lanes_of, sum_of, sum_of_words

F32, U32 = np.float32, np.uint32
FLOAT32, BFLOAT16, INT8, FLOAT8 = 0, 1, 2, 3
"""Types of numbers, as the kernels are told."""


@compiled
def _size(kind):
    return 4 if kind == FLOAT32 else 2 if kind == BFLOAT16 else 1


@compiled
def _read(kind, address, c, n):
    """Numbers c to c + n of a vector that starts at `address`."""
    if kind == FLOAT32:
        return read_float32(address + 4 * c, n)
    if kind == BFLOAT16:
        return read_bfloat16(address + 2 * c, n)
    if kind == INT8:
        return read_int8(address + c, n)
    return read_float8(address + c, n)


@compiled
def _write(kind, address, c, n, value):
    if kind == FLOAT32:
        write_float32(address + 4 * c, n, value)
    else:
        write_bfloat16(address + 2 * c, n, value)


@compiled
def _scale_of(record, scales, e):
    return read_number(record + scales + 4 * e) if scales > 0 else F32(1)


@compiled
def _factor(squares, gain, eps):
    """What Norm multiplies a vector by."""
    return F32(gain) / (math.sqrt(squares) + F32(eps))


@compiled
def gate(
    base, slots, stride, limit, kind, scales, width,
    increment, x_kind, out, scale, s_kind, gain, eps, start, stop,
):  # fmt: skip
    """`ops.gate` of rows [T, D] for increments [T, D] (Eq. 1-2); no scale (0): rows hold P - 1 (Eq. 8).

    Returns the first position without a row, or -1.
    """
    full, size = width // LANES * LANES, width * _size(x_kind)
    for t in range(start, stop):
        slot = read_index(slots + 8 * t)
        if slot < 0 or slot >= limit:
            return t
        row = base + slot * stride
        own = _scale_of(row, scales, 0)
        x, y = increment + t * size, out + t * size
        factor = F32(1)
        if scale != 0:
            total = lanes_of(F32(0))
            for c in range(0, full, LANES):
                u = _read(kind, row, c, LANES) * own
                total = total + u * u
            if full < width:
                u = _read(kind, row, full, width - full) * own
                total = total + u * u
            factor = _factor(sum_of(total), gain, eps)
        for c in range(0, full, LANES):
            _gate(kind, row, own, factor, x_kind, x, y, scale, s_kind, c, LANES)
        if full < width:
            _gate(kind, row, own, factor, x_kind, x, y, scale, s_kind, full, width - full)
    return -1


@compiled
def _gate(kind, row, own, factor, x_kind, x, y, scale, s_kind, c, n):
    u = _read(kind, row, c, n) * own
    if scale != 0:
        u = _read(s_kind, scale, c, n) * (u * factor)
    _write(x_kind, y, c, n, _read(x_kind, x, c, n) * (u + F32(1)))


@compiled
def mix(
    base, slots, stride, limit, kind, scales, row_bytes, width, chosen, weights, top_k,
    increment, x_kind, out, scale, s_kind, gain, eps, start, stop,
):  # fmt: skip
    """Increments [T, D] plus `ops.residual` of `ops.mix_rows` (Eq. 4-6).

    No scale (0): the mixture itself is added. The second reading of the rows finds them in the cache.
    Returns the first position without rows, or -1.
    """
    full, size = width // LANES * LANES, width * _size(x_kind)
    for t in range(start, stop):
        slot = read_index(slots + 8 * t)
        if slot < 0 or slot >= limit:
            return t
        record = base + slot * stride
        picks, shares = chosen + 8 * t * top_k, weights + 4 * t * top_k
        x, y = increment + t * size, out + t * size
        factor = F32(1)
        if scale != 0:
            total = lanes_of(F32(0))
            for c in range(0, full, LANES):
                u = _mixed(record, kind, scales, row_bytes, picks, shares, top_k, c, LANES)
                total = total + u * u
            if full < width:
                u = _mixed(record, kind, scales, row_bytes, picks, shares, top_k, full, width - full)
                total = total + u * u
            factor = _factor(sum_of(total), gain, eps)
        for c in range(0, full, LANES):
            u = _mixed(record, kind, scales, row_bytes, picks, shares, top_k, c, LANES)
            _add(u, factor, x_kind, x, y, scale, s_kind, c, LANES)
        if full < width:
            u = _mixed(record, kind, scales, row_bytes, picks, shares, top_k, full, width - full)
            _add(u, factor, x_kind, x, y, scale, s_kind, full, width - full)
    return -1


@compiled
def _mixed(record, kind, scales, row_bytes, picks, shares, top_k, c, n):
    total = lanes_of(F32(0))
    for k in range(top_k):
        e = read_index(picks + 8 * k)
        own, share = _scale_of(record, scales, e), read_number(shares + 4 * k)
        total = total + _read(kind, record + e * row_bytes, c, n) * own * share
    return total


@compiled
def _add(u, factor, x_kind, x, y, scale, s_kind, c, n):
    if scale != 0:
        u = _read(s_kind, scale, c, n) * (u * factor)
    _write(x_kind, y, c, n, _read(x_kind, x, c, n) + u)


@compiled
def route(hidden, h_kind, router, r_kind, width, experts, top_k, logits, chosen, weights, start, stop):
    """`ops.route` of hidden states [T, D] (Eq. 3); of equal logits the lower number is chosen."""
    full = width // LANES * LANES
    for t in range(start, stop):
        h, own = hidden + t * width * _size(h_kind), logits + 4 * t * experts
        for e in range(experts):
            r, total = router + e * width * _size(r_kind), lanes_of(F32(0))
            for c in range(0, full, LANES):
                total = total + _read(h_kind, h, c, LANES) * _read(r_kind, r, c, LANES)
            if full < width:
                n = width - full
                total = total + _read(h_kind, h, full, n) * _read(r_kind, r, full, n)
            write_number(own + 4 * e, sum_of(total))
        _choose(own, experts, top_k, chosen + 8 * t * top_k, weights + 4 * t * top_k)
    return -1


@compiled
def _choose(logits, experts, top_k, chosen, weights):
    total = F32(0)
    for k in range(top_k):
        best = -1
        for e in range(experts):
            taken = False
            for j in range(k):
                taken = taken or read_index(chosen + 8 * j) == e
            if not taken and (
                best < 0 or _above(read_number(logits + 4 * e), read_number(logits + 4 * best))
            ):
                best = e
        write_index(chosen + 8 * k, best)
        sigma = F32(1) / (F32(1) + math.exp(-read_number(logits + 4 * best)))
        write_number(weights + 4 * k, sigma)
        total += sigma
    for k in range(top_k):
        write_number(weights + 4 * k, read_number(weights + 4 * k) / total)


@compiled
def _above(a, b):
    """Whether a is to be chosen before b; NaN comes first, as in `topk`."""
    return a > b or (a != a and b == b)


@compiled
def first_changed(base, slots, stride, seed, start, stop):
    """The first position from start to stop whose record does not fit its check, or -1."""
    last = stride // 4 - 1
    for t in range(start, stop):
        record = base + read_index(slots + 8 * t) * stride
        total = lanes_of(U32(0))
        for i in range(0, last, LANES):
            weight = counted_from(i) * U32(2) + U32(1)
            total = total + read_words(record + 4 * i, min(LANES, last - i)) * weight
        if (sum_of_words(total) + U32(seed)) & U32(0xFFFFFFFF) != read_word(record + 4 * last):
            return t
    return -1


@compiled
def ask_chosen(base, slots, stride, row_bytes, chosen, top_k, page, start, stop):
    """As `ask`, for the chosen rows of one layer; `chosen` is [T, K]."""
    for t in range(start, stop):
        record = base + read_index(slots + 8 * t) * stride
        for k in range(top_k):
            first = record + read_index(chosen + 8 * (t * top_k + k)) * row_bytes
            low = first // page * page
            will_need(low, (first + row_bytes - low + page - 1) // page * page)


@compiled
def ask(base, slots, stride, begin, size, page, start, stop):
    """Have the pages read that hold bytes begin to begin + size of some records; returns how many bytes."""
    asked = 0
    for t in range(start, stop):
        first = base + read_index(slots + 8 * t) * stride + begin
        low = first // page * page
        length = (first + size - low + page - 1) // page * page
        will_need(low, length)
        asked += length
    return asked
