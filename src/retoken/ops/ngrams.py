"""Hashes of the last n tokens, for tables that are indexed by more than one token."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

BITS = 31
MASK = (1 << BITS) - 1
MULTIPLIER = 0x5851F42D
"""Odd and below 2**31, so that no product leaves an int64: what overflow gives is a compiler's choice."""


def ngram_hash(ids: Tensor, mask: Tensor | None, order: int, salt: int = 0) -> Tensor:
    """A number from 0 to 2**31 - 1 of the current token and the order - 1 before it, [B, S] int64.

    h = salt, then for j = 0 .. order - 1: h = (h xor (x_{t-j} + 1)) * M, and h = (h >> 31) xor (h mod 2**31):
    multiplicative hashing, its upper half folded onto the lower. Where there is no token, at the start or at
    padding, x + 1 is 0, and so it is for all tokens before that.

    Args:
        ids: [B, S] token ids, below 2**31 - 1.
        mask: [B, S], false where ids are padding; None: none are.
        order: n.
        salt: another number from 0 to 2**31 - 1, another hash.
    """
    token, hashed = ids.long() + 1, salt
    present = None if mask is None else mask.to(ids.device).bool()
    for back in range(order):
        if back:
            token = F.pad(token, (1, 0))[:, :-1]
        if back and present is not None:
            present = F.pad(present, (1, 0))[:, :-1] & present
        if present is not None:
            token = token * present
        product = (token ^ hashed) * MULTIPLIER
        hashed = (product >> BITS) ^ (product & MASK)
    return hashed  # pyright: ignore
