"""Tokens whose rows do alike: cosine of what they add, all layers and modulators side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from retoken.inspect.tables import modulation, modulations
from retoken.nn import Modulator


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The tokens nearest to one."""

    id: int
    ids: tuple[int, ...]
    """The nearest first, itself left out."""
    cosines: tuple[float, ...]


@torch.no_grad()
def nearest(
    modulators: Iterable[Modulator], ids_Q: Tensor, among_V: Tensor | None = None, number: int = 6
) -> list[Neighbours]:
    """The tokens nearest to each of some by the cosine of s * Norm(E[x]), layers and modulators concatenated.

    Args:
        modulators: of all layers, or of those to compare by.
        ids_Q: tokens asked about.
        among_V: [V] bool: tokens that may be named; None: all.
        number: how many of them.
    """
    modulators = list(modulators)
    size = modulators[0].table.vocab_size
    dot_QV, square_V = torch.zeros(len(ids_Q), size), torch.zeros(size)
    for module in modulators:
        weight: Tensor = module.table.weight.detach()
        asked_QF = modulation(module, weight[ids_Q.to(weight.device)]).flatten(1)
        for start, _, moved in modulations(module):
            moved_RF = moved.flatten(1)
            here = slice(start, start + len(moved_RF))
            dot_QV[:, here] += (asked_QF @ moved_RF.T).float().cpu()
            square_V[here] += moved_RF.square().sum(1).float().cpu()
    norm_V = square_V.sqrt().clamp_min(1e-30)
    cosine_QV = dot_QV / norm_V / norm_V[ids_Q].unsqueeze(1)
    if among_V is not None:
        cosine_QV[:, ~among_V] = -torch.inf
    cosine_QV.scatter_(1, ids_Q.unsqueeze(1), -torch.inf)
    best = cosine_QV.topk(min(number, size - 1))
    return [
        Neighbours(id=int(token), ids=tuple(ids.tolist()), cosines=tuple(values.tolist()))
        for token, ids, values in zip(ids_Q, best.indices, best.values, strict=True)
    ]
