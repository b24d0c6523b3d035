"""MoRT's residual from the chosen rows (Eq. 4-5)."""

from __future__ import annotations

import torch
from torch import Tensor

from retoken.ops.norm import normalize


def mixed_residual(rows_TKD: Tensor, weights_TK: Tensor, scale_D: Tensor, gain: float, eps: float) -> Tensor:
    """scale * Norm(sum_k weights_k rows_k), [..., D] float32 (Eq. 4-5).

    Args:
        rows_TKD: [..., K, D], the chosen rows; weights_TK: [..., K]; scale_D: [D].
        gain: of Norm, times 1 / sqrt(2 N_l).
    """
    with torch.autocast(rows_TKD.device.type, enabled=False):
        mixed_TD = (weights_TK.unsqueeze(-2) @ rows_TKD.float()).squeeze(-2)
    return scale_D.float() * normalize(mixed_TD, gain, eps)
