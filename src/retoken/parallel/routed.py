"""Option A: the chosen rows only, asked for when the router has chosen (App. B, step 3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from retoken.errors import AttachError
from retoken.ops import mix_rows
from retoken.parallel.combine import Combine
from retoken.parallel.request import Request


class Pairs(NamedTuple):
    """The (token, modulator) pairs of one layer, each once, in the order in which their rows come back."""

    to: list[int]
    """Pairs asked of each rank."""
    come: list[int]
    """Pairs each rank asks of this one."""
    asked: Tensor
    """What they ask: local token number * own modulators + modulator."""
    index: Tensor
    """[..., K] -> 0..P-1."""


def ask_pairs(request: Request, chosen: Tensor, combine: Combine) -> Pairs:
    """Ask the owners for the pairs of tokens and `chosen` [B, S, K]; a collective of the emp group."""
    layout, device = request.layout, chosen.device
    per_token = layout.per_token
    flat = request.positions.unsqueeze(-1) * per_token + chosen
    pairs, inverse = torch.unique(flat, return_inverse=True)
    position, modulator = pairs // per_token, pairs % per_token
    shard = _shard_of(position, request.counts_V)
    owner, code = _address(request, position, modulator, shard)
    order = torch.argsort(owner, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=device)
    to = torch.bincount(owner, minlength=layout.ranks).tolist()
    come = combine.traffic.counts(to, device)
    asked = combine.traffic.exchange_now("pairs", code[order], to, come)
    return Pairs(to, come, asked, place[inverse])


def _shard_of(position: Tensor, counts_V: list[int]) -> Tensor:
    ends = torch.tensor(counts_V, device=position.device).cumsum(0)
    return torch.searchsorted(ends, position, right=True)


def _address(request: Request, position: Tensor, modulator: Tensor, shard: Tensor) -> tuple[Tensor, Tensor]:
    """Rank that owns each pair, and the pair's number there: slot in this rank's request, and modulator."""
    layout, device = request.layout, position.device
    ranges = [layout.modulators(e) for e in range(layout.modulator_shards)]
    part_of = torch.tensor([e for e, own in enumerate(ranges) for _ in own], device=device)
    first = torch.tensor([own.start for own in ranges], device=device)
    size = torch.tensor([len(own) for own in ranges], device=device)
    part = part_of[modulator]
    ends = torch.tensor(request.counts_V, device=device).cumsum(0)
    starts = ends - torch.tensor(request.counts_V, device=device)
    code = (position - starts[shard]) * size[part] + modulator - first[part]
    return shard * layout.modulator_shards + part, code


class FetchPairs(torch.autograd.Function):
    """The rows of asked pairs [P, D]; backward: their gradient goes to the owners."""

    @staticmethod
    def forward(
        ctx: Any, weight: nn.Parameter, pairs: Pairs, request: Request, combine: Combine, layer: int
    ) -> Tensor:
        """An exchange, waited for: there is nothing to do before the rows are here."""
        own, width = weight[:1].numel() // weight.shape[-1], weight.shape[-1]
        slot, modulator = pairs.asked // max(own, 1), pairs.asked % max(own, 1)
        starts = torch.tensor([0, *request.asked_counts[:-1]], device=slot.device).cumsum(0)
        asker = torch.repeat_interleave(starts, torch.tensor(pairs.come, device=slot.device))
        token = slot + asker
        rows = weight.detach().view(-1, width)[request.asked[token] * own + modulator]
        ctx.place = request.place_of_asked[token] * own + modulator
        ctx.pairs, ctx.request, ctx.combine, ctx.layer = pairs, request, combine, layer
        came = combine.traffic.exchange_now("rows", rows, pairs.come, pairs.to)
        return came if came.dtype == torch.float64 else came.float()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, ...]:
        """Starts the exchange; it is finished when the backward pass ends."""
        combine, pairs = ctx.combine, ctx.pairs
        rows, work = combine.traffic.exchange("gradients", grads[0].contiguous(), pairs.to, pairs.come)
        combine.await_rows(ctx.layer, ctx.request, rows, work, ctx.place)
        return None, None, None, None, None


class RoutedRows(NamedTuple):
    """What a layer gets under option A: it asks when it has chosen."""

    weight: nn.Parameter
    request: Request
    combine: Combine
    layer: int

    def lookup(self) -> Tensor:
        """Not asked of a layer that chooses.

        Raises:
            AttachError: always.
        """
        raise AttachError("exchange is 'routed', and the layer has no router; accepted for ReToken: early")

    def mix(self, chosen: Tensor, weights: Tensor) -> Tensor:
        """[B, S, D] for [B, S, K] both (Eq. 4)."""
        pairs = ask_pairs(self.request, chosen, self.combine)
        rows = FetchPairs.apply(self.weight, pairs, self.request, self.combine, self.layer)
        return mix_rows(rows, pairs.index, weights)  # pyright: ignore


class RoutedFetch:
    """The request of one pass; rows follow when a layer has chosen."""

    def __init__(self, weights: dict[int, nn.Parameter], request: Request, combine: Combine) -> None:
        self._weights, self._request, self._combine = weights, request, combine

    def arrived(self, layer: int) -> RoutedRows:
        """What the layer asks through."""
        return RoutedRows(self._weights[layer], self._request, self._combine, layer)
