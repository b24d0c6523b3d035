"""What zeroing rows really costs, for a sample of tokens, beside what it was estimated to cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from retoken.inspect.importance import Estimate
from retoken.inspect.neutral import without_rows
from retoken.inspect.subject import Subject

OnProgress = Callable[[int, int], None]
"""Told (done, in all)."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Tokens whose rows were zeroed, all layers, one token at a time; costs are sums in nats."""

    ids_R: Tensor
    count_R: Tensor
    """Positions."""
    real_R: Tensor
    first_R: Tensor
    path_R: Tensor

    @property
    def first_rank(self) -> float:
        """Rank correlation of the first-order estimate with the real cost, both a position."""
        return rank_correlation(self.first_R / self.count_R, self.real_R / self.count_R)

    @property
    def path_rank(self) -> float:
        """The same of the estimate along the path."""
        return rank_correlation(self.path_R / self.count_R, self.real_R / self.count_R)


def check(
    subject: Subject, found: Estimate, tokens: int, on_progress: OnProgress = lambda done, total: None
) -> Check:
    """Zero the rows of some tokens, spread over those seen by their frequency, one token at a time.

    Measured on the windows that the estimate looked at, so that the two are of the same positions.
    """
    ids_R = _spread(found.count_V, tokens)
    windows = subject.looked_NW
    before = subject.window_losses(windows)
    costs = []
    for done, token in enumerate(ids_R, 1):
        has = (windows[:, :-1] == token).any(1)
        with without_rows(subject.modulators.values(), token.view(1)):
            costs.append((subject.window_losses(windows[has]) - before[has]).sum())
        on_progress(done, len(ids_R))
    return Check(
        ids_R=ids_R,
        count_R=found.count_V[ids_R],
        real_R=torch.stack(costs),
        first_R=found.first_V[ids_R],
        path_R=found.path_V[ids_R],
    )


def _spread(count_V: Tensor, tokens: int) -> Tensor:
    """So many token ids that were seen, from the most frequent to the rarest, at even steps of rank."""
    order = count_V.argsort(descending=True, stable=True)[: int((count_V > 0).sum())]
    steps = torch.linspace(0, len(order) - 1, min(tokens, len(order)), dtype=torch.float64)
    return order[steps.round().long().unique()]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's; nan where a side is constant or shorter than two."""
    if len(a) < 2 or a.unique().numel() < 2 or b.unique().numel() < 2:
        return float("nan")
    found: Any = spearmanr(a.numpy(), b.numpy())
    return float(found.statistic)
