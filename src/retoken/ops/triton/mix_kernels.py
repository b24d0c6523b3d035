"""The kernels of MoRT's mixture (Eq. 4-6). Imports Triton.

Tensors are contiguous but for `table`: tokens are `stride_v` apart, a token's rows `stride_e`. D is the
width, K the number of chosen rows, BLOCK_D and BLOCK_K the next powers of two; elements past D and K are
neither read nor written. Addresses are int64. Ids and choices are not checked.
"""

import triton
import triton.language as tl

from retoken.ops.triton.tiles import norm_backward, norm_factor


@triton.jit
def load_chosen(
    table,
    ids,
    chosen,
    weights,
    token,
    stride_v,
    stride_e,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A token's chosen rows [BLOCK_K, BLOCK_D] and weights [BLOCK_K], float32, zeros past K and D."""
    k = tl.arange(0, BLOCK_K)
    column = tl.arange(0, BLOCK_D)
    row_id = tl.load(ids + token).to(tl.int64)
    modulator = tl.load(chosen + token * K + k, mask=k < K, other=0).to(tl.int64)
    w = tl.load(weights + token * K + k, mask=k < K, other=0.0).to(tl.float32)
    address = (row_id * stride_v + modulator * stride_e)[:, None] + column[None, :]
    inside = (k < K)[:, None] & (column < D)[None, :]
    return tl.load(table + address, mask=inside, other=0.0).to(tl.float32), w


@triton.jit
def mix_forward(
    out,
    increment,
    table,
    ids,
    chosen,
    weights,
    scale,
    stride_v,
    stride_e,
    gain,
    eps,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = increment + scale * Norm(e), e = sum_k w_k row_k, of one token (Eq. 4-6). Grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    inside = column < D
    rows, w = load_chosen(table, ids, chosen, weights, token, stride_v, stride_e, K, BLOCK_K, D, BLOCK_D)
    m = tl.load(increment + token * D + column, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    mixed = tl.sum(rows * w[:, None], axis=0)
    _, factor = norm_factor(mixed, gain, eps)
    total = m + s * (mixed * factor)
    tl.store(out + token * D + column, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def folded_add_forward(
    out,
    increment,
    table,
    ids,
    chosen,
    stride_v,
    stride_e,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """out = increment + table[id, chosen] of one token (Eq. 8 of MoRT, K = 1). Grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    inside = column < D
    row_id = tl.load(ids + token).to(tl.int64)
    modulator = tl.load(chosen + token).to(tl.int64)
    address = row_id * stride_v + modulator * stride_e + column
    row = tl.load(table + address, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(increment + token * D + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * D + column, (m + row).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "per_program"])
def mix_backward(
    grad_rows,
    grad_weights,
    grad_scale,
    grad_out,
    table,
    ids,
    chosen,
    weights,
    scale,
    stride_v,
    stride_e,
    gain,
    eps,
    tokens,
    per_program,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of Eq. 4-5 for `per_program` tokens, each chosen row read once. Grid (programs,).

    grad_rows [T, K, D] and grad_weights [T, K], float32; grad_scale [programs, D] float32, this program's
    part of the sum over tokens, added up in the tokens' order. The increment's gradient is grad_out (Eq. 6).
    """
    program = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK_K)
    column = tl.arange(0, BLOCK_D)
    inside = column < D
    s = tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    scale_sum = tl.zeros([BLOCK_D], dtype=tl.float32)
    first = program * per_program
    for token in range(first, tl.minimum(first + per_program, tokens)):
        rows, w = load_chosen(table, ids, chosen, weights, token, stride_v, stride_e, K, BLOCK_K, D, BLOCK_D)
        g = tl.load(grad_out + token * D + column, mask=inside, other=0.0).to(tl.float32)
        mixed = tl.sum(rows * w[:, None], axis=0)
        length, factor = norm_factor(mixed, gain, eps)
        scale_sum += g * (mixed * factor)
        grad_mixed = norm_backward(g * s, mixed, length, factor, eps)
        grad_w = tl.sum(rows * grad_mixed[None, :], axis=1)
        tl.store(grad_weights + token * K + k, grad_w, mask=k < K)
        for i in tl.static_range(K):  # pyright: ignore
            w_i = tl.load(weights + token * K + i).to(tl.float32)
            tl.store(grad_rows + (token * K + i) * D + column, w_i * grad_mixed, mask=inside)
    tl.store(grad_scale + program * D + column, scale_sum, mask=inside)
