"""What an owner computes for others under option B: only with the rows that were chosen, each pass sorted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from retoken.ops.precision import widen

NOT_CHOSEN = -1.0
"""In place of a weight, which is from 0 to 1. A chosen row's weight may be 0 and still has a gradient."""
_AT_ONCE = 256
"""Rows compared with their gradients at a time: both stay in a core's cache."""


class Mixing(NamedTuple):
    """The P pairs of a token [N] to be mixed here and one of this rank's rows that it chose."""

    token_P: Tensor
    """0..N-1, ascending."""
    modulator_P: Tensor
    """0..E_own-1."""
    weight_P: Tensor
    """Its weight in the mixture."""
    shape: torch.Size
    """[N, E_own]."""

    @classmethod
    def of(cls, weights_NE: Tensor) -> Mixing:
        """From weights, `NOT_CHOSEN` where a row was not."""
        flat = (weights_NE != NOT_CHOSEN).flatten().nonzero().squeeze(1)
        own = max(weights_NE.shape[1], 1)
        return cls(flat // own, flat % own, weights_NE.flatten()[flat], weights_NE.shape)

    def mix(self, table: Tensor, row_P: Tensor) -> Tensor:
        """[N, D]: each token's rows of `table` [.., D], weighted and summed (Eq. 4)."""
        starts = _starts(self.token_P, self.shape[0])
        if table.dtype != self.weight_P.dtype:
            table, row_P = widen(F.embedding(row_P, table)), torch.arange(row_P.numel(), device=row_P.device)
        return F.embedding_bag(row_P, table, starts, per_sample_weights=self.weight_P, mode="sum")

    def row_gradient(self, grad_ND: Tensor, place_N: Tensor, count: int) -> Tensor:
        """[count, E_own, D]: the gradients of a table's rows, summed over the tokens of each place."""
        own = self.shape[1]
        key_P = place_N[self.token_P] * own + self.modulator_P
        key_P, order = torch.sort(key_P, stable=True)
        weight_P = self.weight_P[order]
        starts = _starts(key_P, count * own)
        total = F.embedding_bag(self.token_P[order], grad_ND, starts, per_sample_weights=weight_P, mode="sum")
        return total.view(count, own, grad_ND.shape[1])

    def weight_gradient(self, table: Tensor, row_P: Tensor, grad_ND: Tensor) -> Tensor:
        """[N, E_own]: row times gradient of its token; 0 where it was not chosen."""
        out_P = torch.empty_like(self.weight_P)
        parts = (x.split(_AT_ONCE) for x in (out_P, row_P, self.token_P))
        for out, row, token in zip(*parts, strict=True):
            rows = widen(table.index_select(0, row))
            torch.linalg.vecdot(rows, grad_ND.index_select(0, token), out=out)
        grad_NE = grad_ND.new_zeros(self.shape)
        grad_NE[self.token_P, self.modulator_P] = out_P
        return grad_NE


def _starts(sorted_P: Tensor, count: int) -> Tensor:
    """Where each of 0..count-1 begins in `sorted_P`."""
    return torch.searchsorted(sorted_P, torch.arange(count, device=sorted_P.device))
