"""Which rows a lookup's bench asks for: ids that move on at each call, so that no cache has them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Ids = Literal["fresh", "text"]
DRAWN = 1 << 17
"""Ids of a text, before it starts again."""
FLATTENED = 2.7
"""Zipf and Mandelbrot's constant: the commonest tokens are rarer than 1 / rank says."""


class Stream:
    """Ids in order, from the start again when there are too few left."""

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        self._at = 0

    def take(self, calls: int, tokens: int) -> list[Tensor]:
        """The next ids of some calls, [tokens] int64 each."""
        return [self._next(tokens) for _ in range(calls)]

    def _next(self, tokens: int) -> Tensor:
        if self._at + tokens > len(self.ids):
            self._at = 0
        self._at += tokens
        return self.ids[self._at - tokens : self._at]

    def distinct(self, tokens: int) -> float:
        """How many different ones a call has, on average."""
        calls = min(64, len(self.ids) // tokens)
        return sum(len(self.ids[i * tokens : (i + 1) * tokens].unique()) for i in range(calls)) / calls


def fresh(vocab_size: int, tokens: int, seed: int = 0) -> Tensor:
    """All ids in a drawn order, [>= tokens]: a row comes again only after all others have."""
    drawn = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed))
    return drawn.repeat(-(-tokens // vocab_size))


def text(vocab_size: int, drawn: int = DRAWN, seed: int = 0) -> Tensor:
    """Ids as often as words of a text, [drawn] int64: the r-th commonest of p ~ 1 / (r + 2.7)."""
    generator = torch.Generator().manual_seed(seed)
    often = 1 / (torch.arange(1, vocab_size + 1) + FLATTENED)
    ranks = torch.multinomial(often, drawn, replacement=True, generator=generator)
    return torch.randperm(vocab_size, generator=generator)[ranks]


def stream(kind: Ids, vocab_size: int, tokens: int) -> Stream:
    """Ids of a kind for calls of up to `tokens`."""
    return Stream(fresh(vocab_size, tokens) if kind == "fresh" else text(vocab_size, max(DRAWN, tokens)))
