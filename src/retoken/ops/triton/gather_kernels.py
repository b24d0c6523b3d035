"""The kernel that reads records out of host memory (Sec. 3.3.1). Imports Triton.

Memory is in words of four bytes. All sizes are compile-time ones and multiples of four words but for SCALE,
so that loads and stores of rows are of 16 bytes. Addresses are int64. Ids are not checked.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["first", "capacity"])
def gather_parts(
    out,
    records,
    ids,
    first,
    capacity,
    RECORD: tl.constexpr,
    PART: tl.constexpr,
    SCALES: tl.constexpr,
    SCALE: tl.constexpr,
    ROOM: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """out[layer, token] = part `first` + layer of records[ids[token]], and its scales. Grid (T, L, chunks).

    records [N, RECORD]: parts of PART words one after the other, then from word SCALES on SCALE words for
    each part. out [L, capacity, ROOM]: the PART words, then the SCALE words; the rest of ROOM is not written.
    """
    token = tl.program_id(0).to(tl.int64)
    layer = tl.program_id(1).to(tl.int64)
    chunk = tl.program_id(2)
    number = first + layer
    record = tl.load(ids + token).to(tl.int64) * RECORD
    room = (layer * capacity + token) * ROOM
    column = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = column < PART
    words = tl.load(records + record + number * PART + column, mask=inside)
    tl.store(out + room + column, words, mask=inside)
    if SCALE > 0:  # noqa: SIM102, decided when compiling
        if chunk == 0:
            k = tl.arange(0, BLOCK_S)
            scales = tl.load(records + record + SCALES + number * SCALE + k, mask=k < SCALE)
            tl.store(out + room + PART + k, scales, mask=k < SCALE)
