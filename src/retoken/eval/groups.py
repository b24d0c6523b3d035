"""Kinds of predicted token: by training frequency, its own or that of the token whose rows are read; by place
in the window; by part of the vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["band", "row", "position", "part"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grouping:
    """One way to divide predicted tokens: every one is in exactly one group."""

    kind: Kind | Literal["all"]
    labels: tuple[str, ...]
    """Names of the groups, in the order they are shown."""
    assign: Callable[[Tensor], Tensor]
    """Windows [B, S + 1] on the host -> the group of each predicted token, int64 [B, S]."""


def whole_grouping() -> Grouping:
    """Every token in one group."""
    return Grouping(kind="all", labels=("all",), assign=lambda windows: torch.zeros_like(windows[:, 1:]))


def band_grouping(counts_V: Tensor) -> Grouping:
    """By how often the predicted id occurs in training text: never, 1 to 2, 3 to 9, 10 to 29, 30 to 99, ...

    Args:
        counts_V: Occurrences of each id.
    """
    edges = [0, 1, 3]
    while edges[-1] <= int(counts_V.max()):
        edges.append(10 * edges[-2])
    band_V = torch.bucketize(counts_V, torch.tensor(edges), right=True) - 1
    labels = ("never", *(_span(low, high) for low, high in pairwise(edges[1:])))
    return Grouping(kind="band", labels=labels, assign=lambda windows: band_V[windows[:, 1:]])


def row_grouping(counts_V: Tensor) -> Grouping:
    """By how often the token that is predicted from occurs in training text: the rows of that one are read.

    Args:
        counts_V: Occurrences of each id; the same groups as `band_grouping`.
    """
    own = band_grouping(counts_V)
    # Shifted by one place, each window's first token stands where the first predicted one was.
    return Grouping(kind="row", labels=own.labels, assign=lambda windows: own.assign(windows.roll(1, dims=1)))


def position_grouping(context: int) -> Grouping:
    """By the place in the window that a token is predicted from: 0, 1, 2 to 3, 4 to 7, ...

    A prediction from place p looks back on p + 1 tokens.
    """
    edges = [0, 1]
    while edges[-1] < context:
        edges.append(min(2 * edges[-1], context))
    group_S = torch.bucketize(torch.arange(context), torch.tensor(edges), right=True) - 1
    labels = tuple(_span(low, high) for low, high in pairwise(edges))

    def assign(windows: Tensor) -> Tensor:
        rows, length = windows.shape
        return group_S[: length - 1].expand(rows, -1)

    return Grouping(kind="position", labels=labels, assign=assign)


def _span(low: int, high: int) -> str:
    """`low` to below `high`."""
    return f"{low:,}" if high == low + 1 else f"{low:,}–{high - 1:,}"
