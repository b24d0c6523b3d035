"""Row-sparse gradients: a backward pass gives the rows that were read, each once, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def row_gradient(weight: Tensor, ids_R: Tensor, rows: Tensor) -> Tensor:
    """The gradient of `weight` [V, ...] that is `rows` [R, ...] at `ids_R` (sorted, each once).

    Sparse, coalesced, PyTorch's own form (COO with one sparse dimension): any optimizer for sparse gradients
    takes it.
    """
    index = ids_R.to(weight.device).unsqueeze(0)
    return torch.sparse_coo_tensor(
        index, rows.to(weight.device), size=weight.shape, is_coalesced=True, check_invariants=False
    )


@torch.no_grad()
def add_row_gradient(weight: nn.Parameter, ids_R: Tensor, rows: Tensor) -> None:
    """Add to `weight.grad`, which stays coalesced: PyTorch's own sum of two would not be.

    Args:
        weight: [V, ...]; its gradient is None or row-sparse.
        ids_R: [R], sorted, each once; `rows`: [R, ...], not read again by the caller.
    """
    if weight.grad is not None:
        ids_R, rows = _union(weight.grad, ids_R.to(weight.device), rows.to(weight.device))
    if rows.dtype != weight.dtype:
        weight.grad_dtype = rows.dtype  # rows in bfloat16 have their gradients summed in float32
    weight.grad = row_gradient(weight, ids_R, rows)


def _union(grad: Tensor, ids_R: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    old = grad.indices()[0]
    both, place = torch.cat([old, ids_R]).unique(return_inverse=True)
    total = rows.new_zeros((both.numel(), *rows.shape[1:]))
    total.index_copy_(0, place[: old.numel()], grad.values())
    return both, total.index_add_(0, place[old.numel() :], rows)


class FetchRows(torch.autograd.Function):
    """weight[ids], on the device that computes; backward: a row-sparse gradient where the weight lives."""

    @staticmethod
    def forward(ctx: Any, weight: nn.Parameter, ids_R: Tensor, rows: Tensor) -> Tensor:
        """`rows` [R, ...], the weight's at `ids_R` (sorted, each once), in float32 or wider."""
        ctx.weight, ctx.ids_R = weight, ids_R
        return rows.view_as(rows) if rows.dtype == torch.float64 else rows.float()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, None, None]:
        """The gradient of the rows is added to the weight's, at home: autograd would not coalesce it."""
        add_row_gradient(ctx.weight, ctx.ids_R, grads[0])
        return None, None, None
