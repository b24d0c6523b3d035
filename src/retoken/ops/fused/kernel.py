"""What the layers do with a token's rows, compiled for a CPU: each row is read from memory once.

Row e of position t starts at base + slots[t] * stride + e * row_bytes, its float32 scale, where the type has
one, at base + slots[t] * stride + scales + 4 * e. A mixture may be summed over several records a position:
slots are [T, H] then. Arithmetic is float32. Kernels start no threads.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

import math

import numpy as np

from retoken.ops.compiled import compiled
from retoken.ops.fused.memory import (
    ask_line,
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
from retoken.ops.row_update.lanes import LANES, counted_from, lanes_of, sum_of, sum_of_words

F32, U32 = np.float32, np.uint32
FLOAT32, BFLOAT16, INT8, FLOAT8 = 0, 1, 2, 3
"""Types of numbers, as the kernels are told."""
HEADS = 80
"""Where a block has H, behind what `_of_block` reads."""


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
def _of_block(block):
    """Rows (base, stride, limit, type, scales, bytes a row, width), scale and its type, gain, eps."""
    i = read_index
    return (
        i(block), i(block + 8), i(block + 16), i(block + 24), i(block + 32), i(block + 40),
        i(block + 48), i(block + 56), i(block + 64),
        read_number(block + 72), read_number(block + 76),
    )  # fmt: skip


@compiled
def gate(block, slots, increment, x_kind, out, start, stop):
    """`ops.gate` of rows [T, D] for increments [T, D] (Eq. 1-2); no scale (0): rows hold P - 1 (Eq. 8).

    While a row is worked on, the next one is on its way. Returns the first position without a row, or -1.
    """
    base, stride, limit, kind, scales, _, width, scale, s_kind, gain, eps = _of_block(block)
    full, size = width // LANES * LANES, width * _size(x_kind)
    for t in range(start, stop):
        slot = read_index(slots + 8 * t)
        if slot < 0 or slot >= limit:
            return t
        row, ahead = base + slot * stride, base + read_index(slots + 8 * min(t + 1, stop - 1)) * stride
        own, factor = _scale_of(row, scales, 0), F32(1)
        if scale != 0:
            factor = _factor(_squares(kind, row, own, width, ahead), gain, eps)
            ahead = row
        x, y = increment + t * size, out + t * size
        for c in range(0, full, LANES):
            ask_line(ahead + c * _size(kind))
            _gate(kind, row, own, factor, x_kind, x, y, scale, s_kind, c, LANES)
        if full < width:
            _gate(kind, row, own, factor, x_kind, x, y, scale, s_kind, full, width - full)
    return -1


@compiled
def _squares(kind, row, own, width, ahead):
    """The sum of a row's squares."""
    full, total = width // LANES * LANES, lanes_of(F32(0))
    for c in range(0, full, LANES):
        ask_line(ahead + c * _size(kind))
        u = _read(kind, row, c, LANES) * own
        total = total + u * u
    if full < width:
        u = _read(kind, row, full, width - full) * own
        total = total + u * u
    return sum_of(total)


@compiled
def _gate(kind, row, own, factor, x_kind, x, y, scale, s_kind, c, n):
    u = _read(kind, row, c, n) * own
    if scale != 0:
        u = _read(s_kind, scale, c, n) * (u * factor)
    _write(x_kind, y, c, n, _read(x_kind, x, c, n) * (u + F32(1)))


@compiled
def mix(block, slots, chosen, weights, top_k, increment, x_kind, out, mixed, start, stop):
    """Increments [T, D] plus `ops.residual` of `ops.mix_rows` (Eq. 4-6), summed over a position's H records.

    No scale (0): the mixture itself is added. `mixed` is room for one mixture, [D] float32. While a row is
    worked on, the next position's is on its way. Returns the first position without rows, or -1.
    """
    base, stride, limit, kind, scales, row_bytes, width, scale, s_kind, gain, eps = _of_block(block)
    full, size, heads = width // LANES * LANES, width * _size(x_kind), read_index(block + HEADS)
    count = heads * top_k
    for t in range(start, stop):
        own, later = slots + 8 * t * heads, min(t + 1, stop - 1)
        if _lacks_a_record(own, heads, limit):
            return t
        records = (base, stride, own, slots + 8 * later * heads, scales, row_bytes)
        choice = (chosen + 8 * t * top_k, chosen + 8 * later * top_k, weights + 4 * t * top_k, top_k)
        for k in range(0, count, 3):
            rest = (kind, records, choice, k, width, mixed)
            if count - k >= 3:
                _three(*rest)
            elif count - k == 2:
                _two(*rest)
            else:
                _one(*rest)
        factor = F32(1)
        if scale != 0:
            factor = _factor(_squares(FLOAT32, mixed, F32(1), width, mixed), gain, eps)
        x, y = increment + t * size, out + t * size
        for c in range(0, full, LANES):
            _add(mixed, factor, x_kind, x, y, scale, s_kind, c, LANES)
        if full < width:
            _add(mixed, factor, x_kind, x, y, scale, s_kind, full, width - full)
    return -1


@compiled
def _lacks_a_record(slots, heads, limit):
    for h in range(heads):
        slot = read_index(slots + 8 * h)
        if slot < 0 or slot >= limit:
            return True
    return False


@compiled
def _row(records, choice, k):
    """The k-th of H * K rows: its address, that of the next position's, its scale and its weight."""
    base, stride, own, next_ones, scales, row_bytes = records
    picks, follows, shares, top_k = choice
    h = k // top_k if k >= top_k else 0
    k -= h * top_k
    record, e = base + read_index(own + 8 * h) * stride, read_index(picks + 8 * k)
    later = base + read_index(next_ones + 8 * h) * stride + read_index(follows + 8 * k) * row_bytes
    return record + e * row_bytes, later, _scale_of(record, scales, e), read_number(shares + 4 * k)


@compiled
def _three(kind, records, choice, k, width, mixed):
    """Add three chosen rows to the mixture, side by side: that keeps memory busier than one by one."""
    a = _row(records, choice, k)
    b = _row(records, choice, k + 1)
    d = _row(records, choice, k + 2)
    full = width // LANES * LANES
    for c in range(0, full, LANES):
        u = _part(kind, b, c, LANES, _part(kind, a, c, LANES, _so_far(mixed, k, c, LANES)))
        write_float32(mixed + 4 * c, LANES, _part(kind, d, c, LANES, u))
    if full < width:
        n = width - full
        u = _part(kind, b, full, n, _part(kind, a, full, n, _so_far(mixed, k, full, n)))
        write_float32(mixed + 4 * full, n, _part(kind, d, full, n, u))


@compiled
def _two(kind, records, choice, k, width, mixed):
    """Add two chosen rows to the mixture."""
    a = _row(records, choice, k)
    b = _row(records, choice, k + 1)
    full = width // LANES * LANES
    for c in range(0, full, LANES):
        u = _part(kind, a, c, LANES, _so_far(mixed, k, c, LANES))
        write_float32(mixed + 4 * c, LANES, _part(kind, b, c, LANES, u))
    if full < width:
        n = width - full
        u = _part(kind, a, full, n, _so_far(mixed, k, full, n))
        write_float32(mixed + 4 * full, n, _part(kind, b, full, n, u))


@compiled
def _one(kind, records, choice, k, width, mixed):
    """Add one chosen row to the mixture."""
    a = _row(records, choice, k)
    full = width // LANES * LANES
    for c in range(0, full, LANES):
        write_float32(mixed + 4 * c, LANES, _part(kind, a, c, LANES, _so_far(mixed, k, c, LANES)))
    if full < width:
        n = width - full
        write_float32(mixed + 4 * full, n, _part(kind, a, full, n, _so_far(mixed, k, full, n)))


@compiled
def _part(kind, row, c, n, u):
    """u and some numbers of a row, weighted; the next position's are asked for."""
    address, ahead, own, share = row
    ask_line(ahead + c * _size(kind))
    return u + _read(kind, address, c, n) * own * share


@compiled
def _so_far(mixed, k, c, n):
    return read_float32(mixed + 4 * c, n) if k > 0 else lanes_of(F32(0))


@compiled
def _add(mixed, factor, x_kind, x, y, scale, s_kind, c, n):
    u = read_float32(mixed + 4 * c, n)
    if scale != 0:
        u = _read(s_kind, scale, c, n) * (u * factor)
    _write(x_kind, y, c, n, _read(x_kind, x, c, n) + u)


@compiled
def route(block, hidden, h_kind, logits, chosen, weights, start, stop):
    """`ops.route` of hidden states [T, D] (Eq. 3); of equal logits the lower number is chosen.

    The block: router, its type, width, how many experts, top_k.
    """
    router, r_kind, width = read_index(block), read_index(block + 8), read_index(block + 16)
    experts, top_k = read_index(block + 24), read_index(block + 32)
    size = width * _size(r_kind)
    for t in range(start, stop):
        h, own, e = hidden + t * width * _size(h_kind), logits + 4 * t * experts, 0
        while e + 4 <= experts:
            _four_logits(h_kind, h, r_kind, router + e * size, size, width, own + 4 * e)
            e += 4
        while e < experts:
            write_number(own + 4 * e, _logit(h_kind, h, r_kind, router + e * size, width))
            e += 1
        _choose(own, experts, top_k, chosen + 8 * t * top_k, weights + 4 * t * top_k)
    return -1


@compiled
def _logit(h_kind, h, r_kind, r, width):
    """A state's product with one of the router's rows."""
    full, total = width // LANES * LANES, lanes_of(F32(0))
    for c in range(0, full, LANES):
        total = total + _read(h_kind, h, c, LANES) * _read(r_kind, r, c, LANES)
    if full < width:
        n = width - full
        total = total + _read(h_kind, h, full, n) * _read(r_kind, r, full, n)
    return sum_of(total)


@compiled
def _four_logits(h_kind, h, r_kind, r, size, width, own):
    """`_logit` of four rows, `size` bytes apart, for each number of the state that is read."""
    full = width // LANES * LANES
    p = q = u = v = lanes_of(F32(0))
    for c in range(0, full, LANES):
        x = _read(h_kind, h, c, LANES)
        p = p + x * _read(r_kind, r, c, LANES)
        q = q + x * _read(r_kind, r + size, c, LANES)
        u = u + x * _read(r_kind, r + 2 * size, c, LANES)
        v = v + x * _read(r_kind, r + 3 * size, c, LANES)
    if full < width:
        n = width - full
        x = _read(h_kind, h, full, n)
        p = p + x * _read(r_kind, r, full, n)
        q = q + x * _read(r_kind, r + size, full, n)
        u = u + x * _read(r_kind, r + 2 * size, full, n)
        v = v + x * _read(r_kind, r + 3 * size, full, n)
    write_number(own, sum_of(p))
    write_number(own + 4, sum_of(q))
    write_number(own + 8, sum_of(u))
    write_number(own + 12, sum_of(v))


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
def ask_chosen(base, slots, heads, stride, row_bytes, chosen, top_k, page, start, stop):
    """As `ask`, for the chosen rows of one layer; `slots` are [T, H] and `chosen` [T, K]."""
    for t in range(start, stop):
        for n in range(heads * top_k):
            record = base + read_index(slots + 8 * (t * heads + n // top_k)) * stride
            first = record + read_index(chosen + 8 * (t * top_k + n % top_k)) * row_bytes
            low = first // page * page
            will_need(low, (first + row_bytes - low + page - 1) // page * page)


@compiled
def ask(base, slots, stride, page, start, stop):
    """Have the pages read that hold some records."""
    for t in range(start, stop):
        first = base + read_index(slots + 8 * t) * stride
        low = first // page * page
        will_need(low, (first + stride - low + page - 1) // page * page)
