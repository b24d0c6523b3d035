"""Which modulators tokens choose: by layer, frequency, and part of the vocabulary (MoRT)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retoken.config import MoRTConfig
from retoken.eval.groups import Grouping
from retoken.inspect.subject import Subject
from retoken.inspect.tables import FrequencyBand
from retoken.ops import Routing


@dataclass(frozen=True, kw_only=True)
class PartLoad:
    """Choices for tokens of one part of the vocabulary."""

    positions: int
    shares: tuple[float, ...]
    """Of the part's choices, by modulator; sums to 1."""
    effective: float
    """exp of the entropy of `shares`."""
    apart: float
    """Half the sum of |shares - the layer's|: 0 where the part is routed as all tokens are, 1 where it has
    modulators to itself."""


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
    by_part: dict[str, PartLoad]
    """By part of the vocabulary (`eval.parts`), those that occur, a window's first token left out; empty
    where no tokenizer tells."""


def effective_number(shares: Tensor) -> Tensor:
    """exp of the entropy of shares [..., E] that sum to 1: [...]."""
    return torch.special.entr(shares).sum(-1).exp()


@torch.no_grad()
def loads(
    subject: Subject, bands: list[FrequencyBand], parts: Grouping | None = None
) -> dict[int, LayerLoad]:
    """{layer: its load}; empty for ReToken.

    Args:
        subject: whose windows are looked at.
        bands: kinds of token by frequency.
        parts: kinds of token by part of the vocabulary; None: not told apart.
    """
    config = subject.config
    if not isinstance(config, MoRTConfig):
        return {}
    tallies = {layer: _Tally(subject.vocab_size, config, parts) for layer in subject.modulators}
    for ids, _ in subject.passes(subject.looked_NW):
        ids = ids.cpu()
        part = None if parts is None else parts.assign(ids)
        for layer, routing in (subject.model.retoken.routings or {}).items():  # pyright: ignore
            tallies[layer].add(ids, part, routing)
    return {layer: tally.load(bands) for layer, tally in tallies.items()}


class _Tally:
    """A layer's choices so far."""

    def __init__(self, vocab_size: int, config: MoRTConfig, parts: Grouping | None) -> None:
        self.labels = () if parts is None else parts.labels
        self.count_VE = torch.zeros(vocab_size, config.num_modulators, dtype=torch.int64)
        self.count_PE = torch.zeros(len(self.labels), config.num_modulators, dtype=torch.int64)
        self.entropy, self.positions, self.top_k = 0.0, 0, config.top_k

    def add(self, ids: Tensor, part: Tensor | None, routing: Routing) -> None:
        """Those of a pass over ids [B, S], whose parts but the windows' first are [B, S - 1]."""
        chosen = routing.chosen_TK.cpu().view(*ids.shape, self.top_k)
        _count(self.count_VE, ids, chosen)
        if part is not None:
            _count(self.count_PE, part, chosen[:, 1:])
        self.entropy += torch.special.entr(routing.weights_TK.double()).sum().item()
        self.positions += ids.numel()

    def load(self, bands: list[FrequencyBand]) -> LayerLoad:
        """What they come to."""
        count_VE = self.count_VE.double()
        shares = count_VE.sum(0) / count_VE.sum()
        by_band = [_shares(count_VE[band.ids_R].sum(0)) for band in bands]
        return LayerLoad(
            shares=tuple(shares.tolist()),
            effective=effective_number(shares).item(),
            weighing=math.exp(self.entropy / self.positions),
            by_band=tuple(None if found is None else tuple(found.tolist()) for found in by_band),
            effective_by_band=tuple(
                None if found is None else effective_number(found).item() for found in by_band
            ),
            by_part={
                label: self._part(count_E, shares)
                for label, count_E in zip(self.labels, self.count_PE.double(), strict=True)
                if count_E.sum() > 0
            },
        )

    def _part(self, count_E: Tensor, of_layer_E: Tensor) -> PartLoad:
        shares = count_E / count_E.sum()
        return PartLoad(
            positions=int(count_E.sum()) // self.top_k,
            shares=tuple(shares.tolist()),
            effective=effective_number(shares).item(),
            apart=(shares - of_layer_E).abs().sum().item() / 2,
        )


def _count(count_GE: Tensor, group: Tensor, chosen: Tensor) -> None:
    """Add choices [..., K] of positions in groups [...]."""
    places = group.reshape(-1, 1) * count_GE.shape[1] + chosen.reshape(group.numel(), -1)
    count_GE += torch.bincount(places.flatten(), minlength=count_GE.numel()).view_as(count_GE)


def _shares(count_E: Tensor) -> Tensor | None:
    return count_E / count_E.sum() if count_E.sum() > 0 else None
