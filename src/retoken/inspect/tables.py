"""What can be read off the tables: scales by depth, norms and strength of rows by how frequent tokens are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from retoken.nn import Modulator
from retoken.ops import normalize

RANKS = ((1, 10), (11, 100), (101, 1000), (1001, 10_000), (10_001, 1 << 62))
"""Ranks in the training split, the most frequent token first."""
BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Of a layer's scale s [D]."""

    mean: float
    abs_mean: float
    std: float
    """Over the features."""


@dataclass(frozen=True, kw_only=True)
class FrequencyBand:
    """Tokens of a range of ranks."""

    label: str
    ids_R: Tensor
    share: float
    """Of the training split's tokens; nan where no split is known."""


@dataclass(frozen=True, kw_only=True)
class Strength:
    """What a layer's rows do to tokens of a band; means over them, and over their modulators."""

    norm: float
    """L2 norm of a row, which Norm takes away again: it tells how far a row has moved, not what it does."""
    distance: float
    """Root mean square over the features of s * Norm(E[x]) = p - 1; MoRT: s * Norm(E_i[x]) / sqrt(2 N_l)."""
    shared: float
    """Share of its power that all tokens of the band have in common: 1 where they cannot be told apart."""


def scale_of(module: Modulator) -> Scale:
    """A layer's scale in three numbers."""
    scale = module.scale.detach().double()
    return Scale(
        mean=scale.mean().item(), abs_mean=scale.abs().mean().item(), std=scale.std(correction=0).item()
    )


def bands_of(count_V: Tensor | None, vocab_size: int) -> list[FrequencyBand]:
    """Tokens by their rank in the training split, and those not in it; without counts one band of all."""
    if count_V is None:
        return [FrequencyBand(label="all tokens", ids_R=torch.arange(vocab_size), share=float("nan"))]
    order, seen = count_V.argsort(descending=True, stable=True), int((count_V > 0).sum())
    total, found = max(int(count_V.sum()), 1), []
    for first, last in RANKS:
        ids_R = order[first - 1 : min(last, seen)]
        if len(ids_R):
            label = f"{first:,}–{min(last, seen):,}"
            found.append(FrequencyBand(label=label, ids_R=ids_R, share=count_V[ids_R].sum().item() / total))
    if seen < vocab_size:
        found.append(FrequencyBand(label="never", ids_R=order[seen:], share=0.0))
    return found


def modulation(module: Modulator, rows: Tensor) -> Tensor:
    """s * Norm(rows), float32: p - 1 of ReToken (Eq. 1), a modulator's residual of MoRT (Eq. 5)."""
    return module.scale.detach() * normalize(rows, module.gain, module.eps)  # pyright: ignore


def modulations(module: Modulator) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first token, rows, modulations), some tokens at a time, each [R, D] or [R, E, D]."""
    weight: Tensor = module.table.weight.detach()
    for start in range(0, len(weight), BLOCK):
        rows = weight[start : start + BLOCK]
        yield start, rows, modulation(module, rows)


@torch.no_grad()
def strengths(module: Modulator, bands: list[FrequencyBand]) -> list[Strength]:
    """One a band."""
    size, width = module.table.vocab_size, module.table.width
    modulators = module.table.weight[0].numel() // width
    band_V = torch.full((size,), len(bands))
    for number, band in enumerate(bands):
        band_V[band.ids_R] = number
    norm_V, power_V = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    total_BED = torch.zeros(len(bands) + 1, modulators, width, dtype=torch.float64)
    for start, rows, moved in modulations(module):
        here = slice(start, start + len(rows))
        wide = moved.double().cpu().view(len(rows), modulators, width)
        norm_V[here] = torch.linalg.vector_norm(rows.double().cpu(), dim=-1).view(len(rows), -1).mean(1)
        power_V[here] = wide.square().mean((1, 2))
        total_BED.index_add_(0, band_V[here], wide)
    return [_strength(band.ids_R, norm_V, power_V, total_BED[i]) for i, band in enumerate(bands)]


def _strength(ids_R: Tensor, norm_V: Tensor, power_V: Tensor, total_ED: Tensor) -> Strength:
    power = power_V[ids_R].mean()
    common = (total_ED / len(ids_R)).square().mean()
    return Strength(
        norm=norm_V[ids_R].mean().item(),
        distance=power_V[ids_R].sqrt().mean().item(),
        shared=(common / power).item() if power > 0 else float("nan"),
    )
