"""Every token asks for its rows itself, layer by layer: what asking for each id once is measured against.

Losses and gradients are those of the other ways. Rows that a token could have chosen and did not are not
among the touched ones here, which an optimizer may notice: this is a yardstick, not a way to train.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from retoken.nn import Rows
from retoken.ops import mix_rows
from retoken.parallel.combine import Combine
from retoken.parallel.layout import Layout
from retoken.parallel.routed import FetchPairs, Pairs, as_one_token, ask, divided

Settle = Callable[[nn.Parameter, Tensor], None]


def ask_each(ids: Tensor, chosen: Tensor, layout: Layout, combine: Combine) -> Pairs:
    """Ask the owners for the rows `chosen` [B, S, K] of ids [B, S]; a collective of the emp group."""
    part_of, first, size = divided(layout, ids.device)
    local = (ids // layout.vocab_shards).unsqueeze(-1)
    part = part_of[chosen]
    code = local * size[part] + chosen - first[part]
    owner = (ids % layout.vocab_shards).unsqueeze(-1) * layout.modulator_shards + part
    to, come, asked, place = ask(owner.flatten(), code.flatten(), combine.traffic)
    own = max(len(layout.modulators(layout.place(combine.traffic.rank)[1])), 1)
    touched, token = torch.unique(asked // own, return_inverse=True)
    return Pairs(to, come, place.view(chosen.shape), asked, touched, token * own + asked % own)


class EachRows(NamedTuple):
    """What a layer gets: it asks when it has chosen."""

    weight: nn.Parameter
    ids: Tensor
    layout: Layout
    combine: Combine
    layer: int
    settle: Settle

    def lookup(self) -> Tensor:
        """The one row of each token: [B, S, D]."""
        return self.resident().lookup()

    def mix(self, chosen: Tensor, weights: Tensor) -> Tensor:
        """[B, S, D] for [B, S, K] both (Eq. 4)."""
        rows, index = self._fetch(chosen)
        return mix_rows(rows, index, weights)

    def near(self) -> None:
        """Rows are with other processes."""

    def resident(self) -> Rows:
        """The one row of each token, fetched."""
        rows, index = self._fetch(torch.zeros_like(self.ids).unsqueeze(-1))
        return Rows(index.squeeze(-1), rows)

    def resident_for(self, chosen: Tensor) -> tuple[Rows, Tensor]:
        """The chosen rows, fetched, and which of them each token has."""
        return as_one_token(*self._fetch(chosen))

    def _fetch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        pairs = ask_each(self.ids, chosen, self.layout, self.combine)
        self.settle(self.weight, pairs.touched_U)
        return FetchPairs.apply(self.weight, pairs, self.combine, self.layer), pairs.index  # pyright: ignore


class EachFetch:
    """A pass in which nothing is asked before a layer needs it."""

    def __init__(
        self, weights: dict[int, nn.Parameter], ids: Tensor, layout: Layout, combine: Combine, settle: Settle
    ) -> None:
        self._weights, self._ids, self._layout = weights, ids, layout
        self._combine, self._settle = combine, settle

    def arrived(self, layer: int) -> EachRows:
        """What the layer asks through."""
        return EachRows(self._weights[layer], self._ids, self._layout, self._combine, layer, self._settle)
