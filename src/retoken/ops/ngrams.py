"""Hashes of the last n tokens, for tables that are indexed by more than one token."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MULTIPLIER = 0x9E3779B97F4A7C15 - (1 << 64)
"""2**64 over the golden ratio, odd, as a signed number: Knuth's multiplicative hashing."""
MASK = (1 << 63) - 1
SHIFT = 29


def ngram_hash(ids: Tensor, mask: Tensor | None, order: int, salt: int = 0) -> Tensor:
    """A number from 0 to 2**63 - 1 of the current token and the order - 1 before it, [B, S] int64.

    h = salt, then for j = 0 .. order - 1: h = (h xor (x_{t-j} + 1)) * M mod 2**64, h = h xor (h >> 29). Where
    there is no token, at the start or at padding, x + 1 is 0, and so it is for all tokens before that.

    Args:
        ids: [B, S] token ids.
        mask: [B, S], false where ids are padding; None: none are.
        order: n.
        salt: another number, another hash.
    """
    present = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device).bool()
    token = (ids.long() + 1) * present
    hashed = torch.full_like(token, salt)
    for back in range(order):
        if back:
            token = F.pad(token, (1, 0))[:, :-1]
            present = F.pad(present, (1, 0))[:, :-1] & present
            token = token * present
        hashed = (hashed ^ token) * MULTIPLIER
        hashed = hashed ^ ((hashed >> SHIFT) & (MASK >> (SHIFT - 1)))
    return hashed & MASK
