"""`kernel`'s passes over all positions, by PyTorch's own OpenMP threads where it is worth it.

Those threads wait between two operators anyway: a pass they share starts within microseconds, and each finds
states in its own cache that it has just computed. They take chunks until none is left.

The room of a pass, words of 8 bytes: where OpenMP's fork is, how many threads it makes, memory for mixtures,
the addresses of the parts, slots and how many positions there are, and then what `_share` and the passes
write for the threads.
"""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false, reportAssignmentType=false, reportGeneralTypeIssues=false
from __future__ import annotations

from retoken.ops.compiled import called_by_c, compiled
from retoken.ops.fused import kernel
from retoken.ops.fused.memory import call_all, keep_lowest, read_index, take_number, write_index

FORK, THREADS, SCRATCH = 0, 8, 16
PARTS = 24
"""Addresses of the parts of `gate`, `mix`, `route` and `first_changed`."""
SLOTS, POSITIONS = 56, 64
CHUNK, NEXT, WORKERS, WRONG = 72, 80, 88, 96
GIVEN = 104
"""What a kernel is given, 7 words."""
NUMBERS, RECORDS = 160, 168
"""How many numbers a row has in this pass, and how many records a position."""
WIDTH = 48
"""Where the block of `gate` or `mix` has the width of rows."""
OTHERS = -2
"""The answer where a block is of other rows than the pass."""
ENOUGH = 1 << 15
"""Numbers of states from which threads share the work, and words of records."""
CHUNKS = 4
"""That a thread takes, on average."""


@compiled
def gate(block, increment, x_kind, out, room):
    """`kernel.gate` of all positions."""
    slots, positions = read_index(room + SLOTS), read_index(room + POSITIONS)
    if _is_of_others(block, room):
        return OTHERS
    if not _worth_it(room, positions, read_index(block + WIDTH)):
        return kernel.gate(block, slots, increment, x_kind, out, 0, positions)
    return _share(room, positions, 0, (block, increment, x_kind, out, 0, 0, 0))


@compiled
def mix(block, chosen, weights, top_k, increment, x_kind, out, room):
    """`kernel.mix` of all positions."""
    slots, positions = read_index(room + SLOTS), read_index(room + POSITIONS)
    if _is_of_others(block, room):
        return OTHERS
    if not _worth_it(room, positions, read_index(block + WIDTH)):
        mixed = read_index(room + SCRATCH)
        return kernel.mix(block, slots, chosen, weights, top_k, increment, x_kind, out, mixed, 0, positions)
    return _share(room, positions, 1, (block, chosen, weights, top_k, increment, x_kind, out))


@compiled
def route(block, hidden, h_kind, logits, chosen, weights, room):
    """`kernel.route` of all positions."""
    positions = read_index(room + POSITIONS)
    if read_index(block + 16) != read_index(room + NUMBERS):
        return OTHERS
    if not _worth_it(room, positions, read_index(block + 16)):
        return kernel.route(block, hidden, h_kind, logits, chosen, weights, 0, positions)
    return _share(room, positions, 2, (block, hidden, h_kind, logits, chosen, weights, 0))


@compiled
def first_changed(base, stride, seed, room):
    """`kernel.first_changed` of all positions."""
    slots, positions = read_index(room + SLOTS), read_index(room + POSITIONS)
    if not _worth_it(room, positions, stride // 4):
        return kernel.first_changed(base, slots, stride, seed, 0, positions)
    return _share(room, positions, 3, (base, stride, seed, 0, 0, 0, 0))


@compiled
def _is_of_others(block, room):
    other = read_index(block + WIDTH) != read_index(room + NUMBERS)
    return other or read_index(block + kernel.HEADS) != read_index(room + RECORDS)


@compiled
def _worth_it(room, positions, width):
    return read_index(room + THREADS) > 1 and positions * width >= ENOUGH


@compiled
def _share(room, positions, part, given):
    """Have all threads do a part with what its kernel is given; the first position without rows, or -1."""
    for n in range(len(given)):
        write_index(room + GIVEN + 8 * n, given[n])
    threads = read_index(room + THREADS)
    chunks = threads * CHUNKS
    write_index(room + CHUNK, (positions + chunks - 1) // chunks)
    write_index(room + NEXT, 0)
    write_index(room + WORKERS, 0)
    write_index(room + WRONG, -1)
    call_all(read_index(room + FORK), read_index(room + PARTS + 8 * part), room, threads)
    return read_index(room + WRONG)


@compiled
def _chunk(room):
    """The next positions, from and to; none are left where it is empty."""
    size, positions = read_index(room + CHUNK), read_index(room + POSITIONS)
    start = min(take_number(room + NEXT) * size, positions)
    return start, min(start + size, positions)


@called_by_c
def _gates(room):
    given, slots = room + GIVEN, read_index(room + SLOTS)
    start, stop = _chunk(room)
    while start < stop:
        wrong = kernel.gate(
            read_index(given), slots, read_index(given + 8), read_index(given + 16), read_index(given + 24),
            start, stop,
        )  # fmt: skip
        keep_lowest(room + WRONG, wrong)
        start, stop = _chunk(room)


@called_by_c
def _mixes(room):
    given, slots = room + GIVEN, read_index(room + SLOTS)
    width, top_k = read_index(read_index(given) + WIDTH), read_index(given + 24)
    scratch = read_index(room + SCRATCH) + 4 * width * take_number(room + WORKERS)
    start, stop = _chunk(room)
    while start < stop:
        wrong = kernel.mix(
            read_index(given), slots, read_index(given + 8), read_index(given + 16), top_k,
            read_index(given + 32), read_index(given + 40), read_index(given + 48),
            scratch, start, stop,
        )  # fmt: skip
        keep_lowest(room + WRONG, wrong)
        start, stop = _chunk(room)


@called_by_c
def _routes(room):
    given = room + GIVEN
    start, stop = _chunk(room)
    while start < stop:
        kernel.route(
            read_index(given), read_index(given + 8), read_index(given + 16), read_index(given + 24),
            read_index(given + 32), read_index(given + 40), start, stop,
        )  # fmt: skip
        start, stop = _chunk(room)


@called_by_c
def _checks(room):
    given, slots = room + GIVEN, read_index(room + SLOTS)
    start, stop = _chunk(room)
    while start < stop:
        wrong = kernel.first_changed(
            read_index(given), slots, read_index(given + 8), read_index(given + 16), start, stop
        )
        keep_lowest(room + WRONG, wrong)
        start, stop = _chunk(room)


ADDRESSES: tuple[int, ...] = (_gates.address, _mixes.address, _routes.address, _checks.address)
"""Of the parts, as a room has them."""
