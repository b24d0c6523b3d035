"""What one pass asks of the owners, and they of each other: once for all layers (App. B, steps 1-2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retoken.parallel.layout import Layout
from retoken.parallel.traffic import Traffic


@dataclass(slots=True)
class Request:
    """The token ids of one pass, each once, and who owns them.

    Rows come back in the order in which they were asked for: by vocabulary shard, by id within.
    """

    layout: Layout
    rank: int
    """This rank's place among the owners."""
    positions: Tensor
    """[B, S] -> 0..R-1, in the order of the request."""
    counts_V: list[int]
    """Ids asked of each vocabulary shard; R in all."""
    asked: Tensor
    """Local numbers of the tokens that every rank asks of this one, rank by rank."""
    asked_counts: list[int]
    """How many of `asked` are each rank's."""
    touched_U: Tensor
    """`asked`, sorted, each once: the rows of this shard that the batch touches."""
    place_of_asked: Tensor
    """[sum(asked_counts)] -> 0..U-1."""

    @property
    def wanted(self) -> int:
        """R, distinct ids of this rank's pass."""
        return sum(self.counts_V)

    def to_owners(self, counts_V: list[int]) -> list[int]:
        """Counts by vocabulary shard, as counts by rank: each shard's go to all its modulator owners."""
        return [counts_V[self.layout.place(rank)[0]] for rank in range(self.layout.ranks)]


def open_request(ids: Tensor, layout: Layout, traffic: Traffic) -> Request:
    """Ask the owners for the rows of ids [B, S]: counts, then ids; a collective of the emp group."""
    unique, inverse = torch.unique(ids, return_inverse=True)
    shard = unique % layout.vocab_shards
    order = torch.argsort(shard, stable=True)
    counts = torch.bincount(shard, minlength=layout.vocab_shards).tolist()
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    by_shard = (unique[order] // layout.vocab_shards).split(counts)
    owners = range(layout.ranks)
    to = [counts[layout.place(rank)[0]] for rank in owners]
    come = traffic.counts(to, ids.device)
    sent = torch.cat([by_shard[layout.place(rank)[0]] for rank in owners])
    asked = traffic.exchange_now("ids", sent, to, come)
    touched, place_of_asked = torch.unique(asked, return_inverse=True)
    return Request(
        layout=layout,
        rank=traffic.rank,
        positions=place[inverse],
        counts_V=counts,
        asked=asked,
        asked_counts=come,
        touched_U=touched,
        place_of_asked=place_of_asked,
    )
