"""Leaving tokens' rows out: in which order, at what loss, and how many for a loss that is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from retoken.inspect.importance import Estimate
from retoken.inspect.neutral import without_rows
from retoken.inspect.subject import Subject

SHARES = (1.0, 0.9, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.0)
"""Shares of the tokens that keep their rows, of which a curve is measured."""
STEPS = 9
"""Halvings that look for a number of tokens: to 1 / 512 of the vocabulary."""
OnProgress = Callable[[int, int], None]
"""Told (measurements done, in all)."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Held-out loss against the share of tokens that keep their rows."""

    shares: tuple[float, ...]
    increases: dict[str, tuple[float, ...]]
    """{order: increase of the loss in nats per token at each share}."""


def by_importance(subject: Subject, found: Estimate) -> Tensor:
    """Token ids [V], those first whose rows are worth most: expected cost in text like the training split.

    That is how often a token occurs there times what zeroing its rows costs a position (`shrunk_V`). An
    estimate below zero is taken for zero: in few positions chance makes many. Those are in order of
    frequency, and tokens that do not occur in the training split, whose rows nothing has trained, come last.
    """
    often_V = by_frequency(subject)
    worth_V = found.shrunk_V().clamp_min(0) * subject.count_V
    return often_V[worth_V[often_V].argsort(descending=True, stable=True)]


def by_frequency(subject: Subject) -> Tensor:
    """Token ids [V], the most frequent in the training split first."""
    return subject.count_V.argsort(descending=True, stable=True)


def at_random(subject: Subject, seed: int = 0) -> Tensor:
    """Token ids [V] in an order that knows nothing."""
    return torch.randperm(subject.vocab_size, generator=torch.Generator().manual_seed(seed))


def kept_number(subject: Subject, share: float) -> int:
    """How many tokens a share of them is."""
    return round(share * subject.vocab_size)


def increase(subject: Subject, order_V: Tensor, kept: int, before: float) -> float:
    """Increase of the held-out loss, nats per token, where the first `kept` of an order keep their rows."""
    if kept == len(order_V):
        return 0.0
    with without_rows(subject.modulators.values(), order_V[kept:]):
        return subject.loss() - before


def curve(
    subject: Subject,
    orders: dict[str, Tensor],
    before: float,
    shares: tuple[float, ...] = SHARES,
    on_progress: OnProgress = lambda done, total: None,
) -> Curve:
    """Measure a curve for each order; without any rows they are all the same, which is measured once."""
    numbers, measured = [kept_number(subject, share) for share in shares], 0
    increases: dict[str, tuple[float, ...]] = {}
    at_zero: dict[int, float] = {}
    for name, order_V in orders.items():
        points = []
        for number in numbers:
            known = at_zero.get(number) if number == 0 else None
            points.append(increase(subject, order_V, number, before) if known is None else known)
            at_zero.setdefault(number, points[-1])
            measured += 1
            on_progress(measured, len(orders) * len(numbers))
        increases[name] = tuple(points)
    return Curve(shares=shares, increases=increases)


def fewest(
    subject: Subject,
    order_V: Tensor,
    allowed: float,
    before: float,
    on_progress: OnProgress = lambda done, total: None,
) -> tuple[int, float]:
    """The fewest tokens, the first of an order, that may keep their rows for a loss that is allowed.

    Found by halving, which takes the loss to rise as rows go; what is returned was measured.

    Args:
        subject: the model and the text.
        order_V: token ids, the most important first.
        allowed: increase of the held-out loss, nats per token.
        before: the loss with all rows.
        on_progress: told of each measurement.

    Returns:
        How many, and the increase measured there.
    """
    high, at_high = len(order_V), 0.0
    low = -1
    for step in range(STEPS):
        on_progress(step, STEPS)
        middle = (low + high) // 2
        if middle in (low, high):
            break
        found = increase(subject, order_V, middle, before)
        if found <= allowed:
            high, at_high = middle, found
        else:
            low = middle
    return high, at_high


def kept_mask(order_V: Tensor, kept: int) -> Tensor:
    """[V] bool: the first `kept` of an order."""
    mask = torch.zeros(len(order_V), dtype=torch.bool)
    mask[order_V[:kept]] = True
    return mask
