"""The global gradient norm over dense, row-sparse and divided gradients, and clipping by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Sum = Callable[[Tensor], Tensor]


def values_of(gradient: Tensor) -> Tensor:
    """The numbers a gradient holds: of a row-sparse one (coalesced) its rows, of a divided one this part."""
    local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return local.values() if local.is_sparse else local


def total_norm(parameters: Iterable[nn.Parameter], sum_over_shards: Sum | None = None) -> Tensor:
    """The L2 norm of all gradients taken as one vector; a float32 scalar, the same on every rank.

    Args:
        parameters: those without a gradient do not count.
        sum_over_shards: sums a number over the ranks that share the tables; None: no rank has a part only.
            It is called once, where a row-sparse gradient may be a part.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    rows = [values_of(g) for g in gradients if _is_rows(g)]
    whole = [g for g in gradients if not _is_rows(g)]
    nothing = torch.zeros((), device=gradients[0].device if gradients else None)
    square = _plain(nn.utils.get_total_norm(whole)).square() if whole else nothing
    if rows or sum_over_shards is not None:
        found = _square(rows).to(square.device) if rows else torch.zeros_like(square)
        square = square + (sum_over_shards(found) if sum_over_shards else found)
    return square.sqrt()


def clip_by_norm_(parameters: Iterable[nn.Parameter], max_norm: float, norm: Tensor) -> None:
    """Multiply every gradient by max_norm / norm where the norm is above it, in place."""
    factor = torch.clamp(max_norm / (norm + 1e-6), max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            values = values_of(parameter.grad)
            values.mul_(factor.to(values.device))


def _square(rows: Iterable[Tensor]) -> Tensor:
    """The squared norm of all rows; narrow types are summed in float32."""
    norms = [torch.linalg.vector_norm(r, dtype=torch.promote_types(r.dtype, torch.float32)) for r in rows]
    return torch.stack(norms).square().sum()


def _is_rows(gradient: Tensor) -> bool:
    return not isinstance(gradient, DTensor) and gradient.is_sparse


def _plain(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
