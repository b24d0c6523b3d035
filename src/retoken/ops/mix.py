"""MoRT's mixture of chosen rows, and the residual made of it (Eq. 4-5)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from retoken.ops.norm import normalize
from retoken.ops.precision import widen


def mix_rows(table_RD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """sum_k weights_k table[index_k], [..., D] float32 (Eq. 4).

    Args:
        table_RD: [R, D], the rows of all tokens and modulators one after the other.
        index_TK: [..., K], rows of it; weights_TK: [..., K], float32 (float64 for a float64 table).
    """
    if table_RD.dtype == weights_TK.dtype:
        # One pass over the rows: the [T, K, D] intermediate never exists.
        flat = F.embedding_bag(
            index_TK.flatten(0, -2), table_RD, per_sample_weights=weights_TK.flatten(0, -2), mode="sum"
        )
        return flat.view(*index_TK.shape[:-1], table_RD.shape[-1])
    return (widen(F.embedding(index_TK, table_RD)) * weights_TK.unsqueeze(-1)).sum(-2)


def residual(mixed_TD: Tensor, scale_D: Tensor, gain: float, eps: float) -> Tensor:
    """scale * Norm(mixed), [..., D] float32; `gain` is Norm's times 1 / sqrt(2 N_l) (Eq. 5)."""
    return widen(scale_D) * normalize(mixed_TD, gain, eps)
