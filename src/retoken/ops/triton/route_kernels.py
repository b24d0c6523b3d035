"""The kernel of MoRT's router (Eq. 3). Imports Triton.

Tensors are contiguous. E is the number of modulators, K of those chosen, D the width; BLOCK_E and BLOCK_K
are the next powers of two, BLOCK_D numbers of a state are read at a time. Elements past E, K and D are
neither read nor written. Addresses are int64.
"""

import triton
import triton.language as tl


@triton.jit
def route_forward(
    logits,
    chosen,
    weights,
    hidden,
    router,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """g = h R, the K largest of it, the first of equal ones, and their sigmoids over their sum. Grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    e, k = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_K)
    g = tl.zeros([BLOCK_E], dtype=tl.float32)
    for start in range(0, D, BLOCK_D):
        column = start + tl.arange(0, BLOCK_D)
        h = tl.load(hidden + token * D + column, mask=column < D, other=0.0).to(tl.float32)
        address = e.to(tl.int64)[:, None] * D + column[None, :]
        inside = (e < E)[:, None] & (column < D)[None, :]
        r = tl.load(router + address, mask=inside, other=0.0).to(tl.float32)
        g += tl.sum(r * h[None, :], axis=1)
    tl.store(logits + token * E + e, g, mask=e < E)
    left = tl.where(e < E, g, -float("inf"))
    top = tl.zeros([BLOCK_K], dtype=tl.float32)
    index = tl.zeros([BLOCK_K], dtype=tl.int32)
    for n in tl.static_range(K):  # pyright: ignore
        at = tl.minimum(tl.argmax(left, axis=0), E - 1)  # also where no number is the largest
        top = tl.where(k == n, tl.sum(tl.where(e == at, g, 0.0), axis=0), top)
        index = tl.where(k == n, at, index)
        left = tl.where(e == at, -float("inf"), left)
    sigma = tl.where(k < K, tl.sigmoid(top), 0.0)
    tl.store(weights + token * K + k, sigma / tl.sum(sigma, axis=0), mask=k < K)
    tl.store(chosen + token * K + k, index.to(tl.int64), mask=k < K)
