"""Which rows of a table the positions of a pass read, where that is not the token's own row."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retoken.ops.ngrams import ngram_hash


class Head(NamedTuple):
    """One hash of n-grams into a stretch of a table."""

    order: int
    """n: the current token and the n - 1 before it."""
    salt: int
    """Tells the hashes of one order apart."""
    rows: int
    """Rows it spreads n-grams over."""
    start: int = 0
    """The first of them."""


class Tokens(NamedTuple):
    """Tokens of earlier passes."""

    ids: Tensor
    """[B, P]."""
    mask: Tensor
    """[B, P], false at padding."""


class NgramIndex:
    """[B, S] -> the rows of each position: [B, S] with one head, [B, S, H] with H."""

    def __init__(self, heads: tuple[Head, ...], resumes: bool = True) -> None:
        """
        Args:
            heads: the hashes.
            resumes: whether a pass can go on from a cache: of the positions before its own, what is looked
                up reads ids alone.
        """
        self.heads, self.resumes = heads, resumes

    @property
    def rows_per_position(self) -> int:
        """H."""
        return len(self.heads)

    @property
    def reach(self) -> int:
        """How many tokens before its own a position looks at."""
        return max(head.order for head in self.heads) - 1

    def __call__(self, ids: Tensor, mask: Tensor | None, before: Tokens | None = None) -> Tensor:
        """The rows of token ids [B, S]; `mask` [B, S] is false where they are padding.

        Args:
            ids, mask: as said.
            before: the tokens right before these, at least `reach` of them or all that there were.
        """
        seen = 0 if before is None else before.ids.shape[1]
        if before is not None:
            here = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
            ids, mask = torch.cat([before.ids, ids], 1), torch.cat([before.mask, here], 1)
        if _is_full(mask):
            mask = None
        found = [
            ngram_hash(ids, mask, head.order, head.salt)[:, seen:].remainder(head.rows) + head.start
            for head in self.heads
        ]
        return found[0] if len(found) == 1 else torch.stack(found, -1)


def _is_full(mask: Tensor | None) -> bool:
    """Whether a mask leaves nothing out; not looked for where that would stall a device or a compiler."""
    if mask is None or mask.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return type(mask) is Tensor and bool(mask.all())


class TokenAndNgrams(NgramIndex):
    """[B, S] -> [B, S, 1 + H]: the token's own row, then those of the hashes."""

    @property
    def rows_per_position(self) -> int:
        """1 + H."""
        return 1 + len(self.heads)

    def __call__(self, ids: Tensor, mask: Tensor | None, before: Tokens | None = None) -> Tensor:
        """As its base."""
        found = super().__call__(ids, mask, before)
        return torch.cat([ids.unsqueeze(-1), found.view(*ids.shape, len(self.heads))], -1)
