"""MoRT's router: which K of a token's rows, and with what weights (Eq. 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retoken.ops.precision import widen, without_autocast


class Routing(NamedTuple):
    """One layer's choice for T tokens. Only `weights_TK` and `logits_TE` are differentiable."""

    logits_TE: Tensor
    chosen_TK: Tensor
    weights_TK: Tensor


def route(hidden_TD: Tensor, router_ED: Tensor, top_k: int) -> Routing:
    """Logits g = h R, the top K of them, and their sigmoids over their sum; float32 or wider (Eq. 3)."""
    with without_autocast(hidden_TD.device):
        logits_TE = widen(hidden_TD) @ widen(router_ED).T
    top_TK, chosen_TK = logits_TE.topk(top_k, dim=-1)
    sigma_TK = torch.sigmoid(top_TK)
    return Routing(logits_TE, chosen_TK, sigma_TK / sigma_TK.sum(-1, keepdim=True))


def block_input_norm(hidden_TD: Tensor, eps: float = 1e-6) -> Tensor:
    """RMSNorm of a block's input without a gain of its own, float32 or wider (JTok's router input).

    A learned gain would be absorbed by the router's columns, so leaving it out loses nothing and
    makes the input the same for every backbone family.
    """
    hidden_TD = widen(hidden_TD)
    return hidden_TD * torch.rsqrt(hidden_TD.square().mean(-1, keepdim=True) + eps)
