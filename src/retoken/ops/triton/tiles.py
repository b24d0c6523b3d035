"""Pieces of kernels: a row's norm and the gradient through it, in float32. Imports Triton."""

import triton
import triton.language as tl


@triton.jit
def norm_factor(row, gain, eps):
    """||row||_2 and gain / (||row||_2 + eps) of a float32 row [BLOCK_D] with zeros past D (below Eq. 1)."""
    length = tl.sqrt_rn(tl.sum(row * row, axis=0))
    return length, tl.div_rn(gain, length + eps)


@triton.jit
def norm_backward(grad, row, length, factor, eps):
    """The gradient of `row` from that of factor * row, [BLOCK_D] both (below Eq. 1).

    factor * (grad - row (grad . row) / (||row|| (||row|| + eps))); at a zero row the second term is 0,
    as in eager PyTorch, and the gradient is factor = gain / eps times grad.
    """
    along = tl.sum(grad * row, axis=0)
    longer = tl.where(length > 0.0, length * (length + eps), 1.0)
    pull = tl.where(length > 0.0, tl.div_rn(along, longer), 0.0)
    return factor * (grad - row * pull)
