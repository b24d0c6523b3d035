"""The load-balancing loss from sums that add over any split of the batch (Eq. 21)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class RouterLoad(NamedTuple):
    """Sums of Eq. 21 over some tokens: they add over micro-batches and ranks, unlike the loss itself."""

    probability_E: Tensor
    """P_i, the summed routing probability; differentiable."""
    count_E: Tensor
    """n_i, how many tokens chose modulator i; in the logits' type, not differentiable."""
    tokens: Tensor
    """T, a scalar."""


def router_load(logits_TE: Tensor, chosen_TK: Tensor, mask_T: Tensor | None = None) -> RouterLoad:
    """P_i, n_i and T of Eq. 21 over the tokens whose mask is set (all of them without one)."""
    logits_TE, chosen_TK = logits_TE.flatten(0, -2), chosen_TK.flatten(0, -2)
    num_modulators = logits_TE.shape[-1]
    sigma_TE = torch.sigmoid(logits_TE)
    probability_TE = sigma_TE / sigma_TE.sum(-1, keepdim=True)
    selected_TE = torch.zeros_like(logits_TE).scatter(-1, chosen_TK, 1.0).detach()
    if mask_T is None:
        tokens = logits_TE.new_full((), logits_TE.shape[0])
        return RouterLoad(probability_TE.sum(0), selected_TE.sum(0), tokens)
    keep_T1 = mask_T.reshape(-1, 1).to(logits_TE)
    assert keep_T1.shape[0] == logits_TE.shape[0], (keep_T1.shape, logits_TE.shape, num_modulators)
    return RouterLoad((probability_TE * keep_T1).sum(0), (selected_TE * keep_T1).sum(0), keep_T1.sum())


def balance_loss(load: RouterLoad, top_k: int, total: RouterLoad | None = None) -> Tensor:
    """n_e / (T^2 K) * sum_i P_i n_i, one layer, without lambda (Eq. 21).

    With `total`, the counts and tokens of the whole batch this load is a part of: the parts' values,
    and their gradients, then add up to the whole batch's.
    """
    whole = total or load
    tokens = whole.tokens.clamp(min=1.0)
    num_modulators = load.count_E.shape[-1]
    return num_modulators / (tokens**2 * top_k) * (load.probability_E * whole.count_E).sum()
