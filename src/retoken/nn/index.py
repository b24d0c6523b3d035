"""Which rows of a table the positions of a pass read, where that is not the token's own row."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from retoken.errors import AttachError
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


class NgramIndex:
    """[B, S] -> the rows of each position: [B, S] with one head, [B, S, H] with H."""

    def __init__(self, heads: tuple[Head, ...]) -> None:
        self.heads = heads

    def __call__(self, ids: Tensor, mask: Tensor | None, past: Any = None) -> Tensor:
        """The rows of token ids [B, S]; `mask` [B, S] is false where they are padding, `past` is the cache.

        Raises:
            AttachError: the cache holds tokens before these.
        """
        if past is not None and past.get_seq_length() > 0:
            raise AttachError(
                "rows are looked up by n-grams, and the tokens before input_ids are in a cache that does not "
                "hold ids; accepted: the whole text as input_ids, with use_cache=False"
            )
        found = [
            ngram_hash(ids, mask, head.order, head.salt).remainder(head.rows) + head.start
            for head in self.heads
        ]
        return found[0] if len(found) == 1 else torch.stack(found, -1)


class TokenAndNgrams(NgramIndex):
    """[B, S] -> [B, S, 1 + H]: the token's own row, then those of the hashes."""

    def __call__(self, ids: Tensor, mask: Tensor | None, past: Any = None) -> Tensor:
        """As its base, which raises what it raises."""
        found = super().__call__(ids, mask, past)
        return torch.cat([ids.unsqueeze(-1), found.view(*ids.shape, len(self.heads))], -1)
