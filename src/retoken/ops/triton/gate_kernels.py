"""The kernels of ReToken's gate (Eq. 1-2, 8). Imports Triton.

Tensors are contiguous but for `table`, whose rows are `stride_v` apart. D is the width, BLOCK_D the next
power of two; elements past D are neither read nor written. Addresses are int64. Ids are not checked.
"""

import triton
import triton.language as tl

from retoken.ops.triton.tiles import norm_backward, norm_factor


@triton.jit
def gate_forward(
    out, increment, table, ids, scale, stride_v, gain, eps, D: tl.constexpr, BLOCK_D: tl.constexpr
):
    """out = increment * (1 + scale * Norm(table[id])) of one token, each read once (Eq. 1-2). Grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    inside = column < D
    row_id = tl.load(ids + token).to(tl.int64)
    row = tl.load(table + row_id * stride_v + column, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(increment + token * D + column, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    _, factor = norm_factor(row, gain, eps)
    gated = m * (1.0 + s * (row * factor))
    tl.store(out + token * D + column, gated.to(out.dtype.element_ty), mask=inside)


@triton.jit
def folded_forward(out, increment, table, ids, stride_v, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """out = increment * (1 + table[id]) of one token (Eq. 8 with rows P - 1). Grid (T,)."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    inside = column < D
    row_id = tl.load(ids + token).to(tl.int64)
    row = tl.load(table + row_id * stride_v + column, mask=inside, other=0.0).to(tl.float32)
    m = tl.load(increment + token * D + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * D + column, (m * (1.0 + row)).to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["tokens", "per_program"])
def gate_backward(
    grad_increment,
    grad_rows,
    grad_scale,
    grad_out,
    increment,
    table,
    ids,
    scale,
    stride_v,
    gain,
    eps,
    tokens,
    per_program,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of Eq. 1-2 for `per_program` tokens, rows and increments read once. Grid (programs,).

    grad_increment [T, D]; grad_rows [T, D] float32, of each token's row; grad_scale [programs, D] float32,
    this program's part of the sum over tokens, added up in the tokens' order.
    """
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_D)
    inside = column < D
    s = tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)
    scale_sum = tl.zeros([BLOCK_D], dtype=tl.float32)
    first = program * per_program
    for token in range(first, tl.minimum(first + per_program, tokens)):
        row_id = tl.load(ids + token).to(tl.int64)
        row = tl.load(table + row_id * stride_v + column, mask=inside, other=0.0).to(tl.float32)
        m = tl.load(increment + token * D + column, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad_out + token * D + column, mask=inside, other=0.0).to(tl.float32)
        length, factor = norm_factor(row, gain, eps)
        grad_m = g * (1.0 + s * (row * factor))
        grad_row = norm_backward(g * m * s, row, length, factor, eps)
        scale_sum += g * m * (row * factor)
        tl.store(grad_increment + token * D + column, grad_m.to(grad_increment.dtype.element_ty), mask=inside)
        tl.store(grad_rows + token * D + column, grad_row, mask=inside)
    tl.store(grad_scale + program * D + column, scale_sum, mask=inside)
