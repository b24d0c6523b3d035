"""Which modulators tokens choose: by layer, and by how frequent the tokens are (MoRT)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retoken.config import MoRTConfig
from retoken.inspect.subject import Subject
from retoken.inspect.tables import FrequencyBand


@dataclass(frozen=True, kw_only=True)
class LayerLoad:
    """Choices of a layer's router on the windows that were looked at."""

    shares: tuple[float, ...]
    """Of all choices, by modulator; sums to 1."""
    effective: float
    """exp of the entropy of `shares`: E where all are chosen alike, 1 where only one is."""
    weighing: float
    """exp of the mean entropy of a position's K weights: K where they are alike, 1 where one has all."""
    by_band: tuple[tuple[float, ...] | None, ...]
    """`shares` within each band of tokens; None where none of it occurs."""
    effective_by_band: tuple[float | None, ...]


def effective_number(shares: Tensor) -> Tensor:
    """exp of the entropy of shares [..., E] that sum to 1: [...]."""
    return torch.special.entr(shares).sum(-1).exp()


@torch.no_grad()
def loads(subject: Subject, bands: list[FrequencyBand]) -> dict[int, LayerLoad]:
    """{layer: its load}; empty for ReToken."""
    config = subject.config
    if not isinstance(config, MoRTConfig):
        return {}
    size, modulators = subject.vocab_size, config.num_modulators
    empty = torch.zeros(size * modulators, dtype=torch.float64)
    counts = {layer: empty.clone() for layer in subject.modulators}
    entropy = dict.fromkeys(subject.modulators, 0.0)
    for ids, _ in subject.passes(subject.looked_NW):
        for layer, routing in (subject.model.retoken.routings or {}).items():  # pyright: ignore
            chosen_TK = routing.chosen_TK.reshape(-1, config.top_k).cpu()
            places = ids.reshape(-1, 1).cpu() * modulators + chosen_TK
            counts[layer] += torch.bincount(places.flatten(), minlength=len(empty))
            entropy[layer] += torch.special.entr(routing.weights_TK.double()).sum().item()
    positions = subject.looked_NW[:, :-1].numel()
    return {
        layer: _load(found.view(size, modulators), entropy[layer] / positions, bands)
        for layer, found in counts.items()
    }


def _load(count_VE: Tensor, entropy: float, bands: list[FrequencyBand]) -> LayerLoad:
    shares = count_VE.sum(0) / count_VE.sum()
    by_band = [_shares(count_VE[band.ids_R].sum(0)) for band in bands]
    return LayerLoad(
        shares=tuple(shares.tolist()),
        effective=effective_number(shares).item(),
        weighing=float(torch.tensor(entropy, dtype=torch.float64).exp()),
        by_band=tuple(None if found is None else tuple(found.tolist()) for found in by_band),
        effective_by_band=tuple(
            None if found is None else effective_number(found).item() for found in by_band
        ),
    )


def _shares(count_E: Tensor) -> Tensor | None:
    return count_E / count_E.sum() if count_E.sum() > 0 else None
