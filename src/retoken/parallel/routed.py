"""Option A: the chosen rows only, asked for when the router has chosen (App. B, step 3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from retoken.errors import AttachError
from retoken.nn import Rows
from retoken.ops import mix_rows
from retoken.parallel.combine import Combine
from retoken.parallel.layout import Layout
from retoken.parallel.request import Request
from retoken.parallel.traffic import Traffic


class Pairs(NamedTuple):
    """The (token, modulator) pairs of one layer, in the order in which their rows come back."""

    to: list[int]
    """Pairs asked of each rank."""
    come: list[int]
    """Pairs each rank asks of this one; N in all."""
    index: Tensor
    """[..., K] -> 0..P-1, those asked."""
    row_N: Tensor
    """Which of this rank's rows each asked one is: local token * own modulators + modulator."""
    touched_U: Tensor
    """This rank's tokens that the pass touches; sorted, each once."""
    place_N: Tensor
    """The same with places in `touched_U` for tokens."""


def ask_pairs(request: Request, chosen: Tensor, combine: Combine) -> Pairs:
    """Ask the owners for the pairs of tokens and `chosen` [B, S, K], each once; a collective of the group."""
    per_token = request.layout.per_token
    flat = request.positions.unsqueeze(-1) * per_token + chosen
    pairs, inverse = _distinct(flat, request.wanted * per_token)
    owner, code = _address(request, pairs // per_token, pairs % per_token)
    to, come, asked, place = ask(owner, code, combine.traffic)
    return Pairs(to, come, place[inverse], *_at_home(request, asked, come))


def ask(owner: Tensor, code: Tensor, traffic: Traffic) -> tuple[list[int], list[int], Tensor, Tensor]:
    """Send each code to its owner.

    Returns:
        Codes to and from each rank, those that came, and each sent one's place in the order of sending.
    """
    order = torch.argsort(owner, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    to = torch.bincount(owner, minlength=traffic.size).tolist()
    come = traffic.counts(to, owner.device)
    return to, come, traffic.exchange_now("pairs", code[order], to, come), place


def divided(layout: Layout, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The shard of each modulator; the first modulator of each shard; how many it has."""
    ranges = [layout.modulators(e) for e in range(layout.modulator_shards)]
    part_of = torch.tensor([e for e, own in enumerate(ranges) for _ in own], device=device)
    first = torch.tensor([own.start for own in ranges], device=device)
    return part_of, first, torch.tensor([len(own) for own in ranges], device=device)


def _distinct(values: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """`torch.unique` with the inverse, for integers from 0 to `limit`: by marking them, without a sort."""
    seen = torch.zeros(limit, dtype=torch.bool, device=values.device)
    seen[values.flatten()] = True
    return seen.nonzero().squeeze(1), (seen.cumsum(0) - 1)[values]


def _address(request: Request, position: Tensor, modulator: Tensor) -> tuple[Tensor, Tensor]:
    """Rank that owns each pair, and the pair's number there: slot in this rank's request, and modulator."""
    part_of, first, size = divided(request.layout, position.device)
    counts = torch.tensor(request.counts_V, device=position.device)
    ends, part = counts.cumsum(0), part_of[modulator]
    shard = torch.searchsorted(ends, position, right=True)
    code = (position - (ends - counts)[shard]) * size[part] + modulator - first[part]
    return shard * request.layout.modulator_shards + part, code


def _at_home(request: Request, asked: Tensor, come: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Asked codes as rows of this rank, the tokens they touch, and their places there."""
    layout, device = request.layout, asked.device
    own = max(len(layout.modulators(layout.place(request.rank)[1])), 1)
    starts = torch.tensor([0, *request.asked_counts[:-1]], device=device).cumsum(0)
    token = asked // own + torch.repeat_interleave(starts, torch.tensor(come, device=device))
    modulator = asked % own
    row_N = request.asked[token] * own + modulator
    return row_N, request.touched_U, request.place_of_asked[token] * own + modulator


class FetchPairs(torch.autograd.Function):
    """The rows of asked pairs [P, D]; backward: their gradient goes to the owners."""

    @staticmethod
    def forward(ctx: Any, weight: nn.Parameter, pairs: Pairs, combine: Combine, layer: int) -> Tensor:
        """An exchange, waited for: there is nothing to do before the rows are here."""
        rows = weight.detach().view(-1, weight.shape[-1]).index_select(0, pairs.row_N)
        ctx.pairs, ctx.combine, ctx.layer = pairs, combine, layer
        came = combine.traffic.exchange_now("rows", rows, pairs.come, pairs.to)
        return came if came.dtype == torch.float64 else came.float()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, ...]:
        """Starts the exchange; it is finished when the backward pass ends."""
        combine, pairs = ctx.combine, ctx.pairs
        rows, work = combine.traffic.exchange("gradients", grads[0].contiguous(), pairs.to, pairs.come)
        combine.await_rows(ctx.layer, pairs.touched_U, rows, work, pairs.place_N)
        return None, None, None, None


def as_one_token(rows_PD: Tensor, index_TK: Tensor) -> tuple[Rows, Tensor]:
    """Rows and which of them [..., K] each token has, as P rows of one token that all tokens are."""
    return Rows(index_TK.new_zeros(index_TK.shape[:-1]), rows_PD.unsqueeze(0)), index_TK


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
        return mix_rows(*self._fetch(chosen), weights)

    def near(self) -> None:
        """Rows are with other processes."""

    def resident(self) -> None:
        """Only of a choice."""

    def resident_for(self, chosen: Tensor) -> tuple[Rows, Tensor]:
        """The chosen rows, fetched, and which of them each token has."""
        return as_one_token(*self._fetch(chosen))

    def _fetch(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [P, D], and for each choice its number [..., K] among them."""
        pairs = ask_pairs(self.request, chosen, self.combine)
        rows = FetchPairs.apply(self.weight, pairs, self.combine, self.layer)
        return rows, pairs.index  # pyright: ignore


class RoutedFetch:
    """The request of one pass; rows follow when a layer has chosen."""

    def __init__(self, weights: dict[int, nn.Parameter], request: Request, combine: Combine) -> None:
        self._weights, self._request, self._combine = weights, request, combine

    def arrived(self, layer: int) -> RoutedRows:
        """What the layer asks through."""
        return RoutedRows(self._weights[layer], self._request, self._combine, layer)
