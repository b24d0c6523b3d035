"""Option B: weights travel to the owners, who mix; one vector a token comes back (App. B, step 3)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retoken.errors import AttachError
from retoken.parallel.combine import Combine
from retoken.parallel.owner import NOT_CHOSEN, Mixing
from retoken.parallel.request import Request
from retoken.parallel.traffic import Traffic


class TokenSlots(NamedTuple):
    """Which asked row each token has: sent once a pass, for all layers."""

    order: Tensor
    """[T], this rank's tokens by vocabulary shard."""
    counts_V: list[int]
    """Tokens of each vocabulary shard."""
    to: list[int]
    """Tokens mixed by each rank for this one."""
    come: list[int]
    """Tokens each rank wants mixed here; N in all."""
    asked: Tensor
    """[N] -> places in the request's `asked`."""


def send_slots(request: Request, traffic: Traffic) -> TokenSlots:
    """Tell the owners which of the asked rows each token has; a collective of the emp group."""
    layout, positions = request.layout, request.positions.flatten()
    device = positions.device
    ends = torch.tensor(request.counts_V, device=device).cumsum(0)
    shard = torch.searchsorted(ends, positions, right=True)
    order = torch.argsort(shard, stable=True)
    counts = torch.bincount(shard, minlength=layout.vocab_shards).tolist()
    starts = ends - torch.tensor(request.counts_V, device=device)
    slots = (positions - starts[shard])[order].int().split(counts)
    to = request.to_owners(counts)
    come = traffic.counts(to, device)
    sent = torch.cat([slots[layout.place(rank)[0]] for rank in range(layout.ranks)])
    came = traffic.exchange_now("slots", sent, to, come).long()
    first = torch.tensor([0, *request.asked_counts[:-1]], device=device).cumsum(0)
    came += torch.repeat_interleave(first, torch.tensor(come, device=device))
    return TokenSlots(order, counts, to, come, came)


class MixAtOwner(torch.autograd.Function):
    """sum_k weights_k E_{chosen_k} of each token, [T, D] float32, computed where the rows are (Eq. 4)."""

    @staticmethod
    def forward(
        ctx: Any, weights_TK: Tensor, chosen_TK: Tensor, weight: nn.Parameter, call: MixedRows
    ) -> Tensor:
        """Two exchanges: weights there, mixtures back."""
        slots, traffic, layout = call.slots, call.combine.traffic, call.request.layout
        dense_TE = weights_TK.new_full((weights_TK.shape[0], layout.per_token), NOT_CHOSEN)
        dense_TE.scatter_(1, chosen_TK, weights_TK)
        mixing = Mixing.of(_to_owners("weights", dense_TE[slots.order], call))
        table = weight.detach().view(-1, weight.shape[-1])
        local_N = call.request.asked[slots.asked]
        row_P = local_N[mixing.token_P] * mixing.shape[1] + mixing.modulator_P
        mixed_ND = mixing.mix(table, row_P)
        came = traffic.exchange_now("mixtures", mixed_ND, slots.come, slots.to)
        ctx.call, ctx.table, ctx.mixing = call, table, mixing
        ctx.save_for_backward(chosen_TK, row_P)
        return _in_order(came, call)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:
        """One gradient a token there; the gradient of its weights back; the rows' stay with their owner."""
        chosen_TK, row_P = ctx.saved_tensors
        call, mixing, slots, request = ctx.call, ctx.mixing, ctx.call.slots, ctx.call.request
        sorted_grad = grads[0][slots.order].split(slots.counts_V)
        sent = torch.cat([sorted_grad[request.layout.place(r)[0]] for r in range(request.layout.ranks)])
        grad_ND = call.combine.traffic.exchange_now("gradients", sent, slots.to, slots.come)
        back = _send_back("weight gradients", mixing.weight_gradient(ctx.table, row_P, grad_ND), call)
        touched = request.touched_U
        total = mixing.row_gradient(grad_ND, request.place_of_asked[slots.asked], touched.numel())
        call.combine.await_rows(call.layer, touched, total, None, None)
        grad_TE = _from_owners(*back, call)
        return grad_TE.gather(1, chosen_TK), None, None, None


def _to_owners(kind: str, dense_TE: Tensor, call: MixedRows) -> Tensor:
    """[T, E] in shard order -> [N, E_own]: every owner's modulators of every token it mixes."""
    layout, slots = call.request.layout, call.slots
    by_shard, ranges = dense_TE.split(slots.counts_V), _ranges(call)
    pieces = [by_shard[layout.place(r)[0]][:, own.start : own.stop] for r, own in enumerate(ranges)]
    mine = len(ranges[call.request.rank])
    flat = call.combine.traffic.exchange_now(
        kind,
        torch.cat([piece.reshape(-1) for piece in pieces]),
        [piece.numel() for piece in pieces],
        [count * mine for count in slots.come],
    )
    return flat.view(sum(slots.come), mine)


def _send_back(kind: str, part_NE: Tensor, call: MixedRows) -> tuple[Tensor, dist.Work]:
    """Start sending what this owner has for each token it mixed to the ranks they are of."""
    slots, mine = call.slots, part_NE.shape[1]
    to, come = [count * mine for count in slots.come], _sizes(call)
    return call.combine.traffic.exchange(kind, part_NE.reshape(-1), to, come)


def _from_owners(flat: Tensor, work: dist.Work, call: MixedRows) -> Tensor:
    """What `_send_back` sent, arrived: [T, E] in the tokens' own order."""
    layout, slots = call.request.layout, call.slots
    dense = flat.new_zeros((slots.order.numel(), layout.per_token))
    by_shard = dense.split(slots.counts_V)
    work.wait()
    for rank, (piece, own) in enumerate(zip(flat.split(_sizes(call)), _ranges(call), strict=True)):
        target = by_shard[layout.place(rank)[0]]
        target[:, own.start : own.stop] = piece.view(target.shape[0], len(own))
    out = torch.empty_like(dense)
    out[slots.order] = dense
    return out


def _sizes(call: MixedRows) -> list[int]:
    """Numbers each owner has for this rank's tokens: one for each of its modulators."""
    return [count * len(own) for count, own in zip(call.slots.to, _ranges(call), strict=True)]


def _in_order(came: Tensor, call: MixedRows) -> Tensor:
    """Mixtures of all owners, summed over modulator shards, [T, D] in the tokens' own order."""
    layout, slots = call.request.layout, call.slots
    total = came.new_zeros((slots.order.numel(), came.shape[1]))
    by_shard = total.split(slots.counts_V)
    for rank, piece in enumerate(came.split(slots.to)):
        by_shard[layout.place(rank)[0]].add_(piece)
    out = torch.empty_like(total)
    out[slots.order] = total
    return out


def _ranges(call: MixedRows) -> list[range]:
    layout = call.request.layout
    return [layout.modulators(layout.place(rank)[1]) for rank in range(layout.ranks)]


class MixedRows(NamedTuple):
    """What a layer gets under option B: it sends its weights and gets the mixture."""

    weight: nn.Parameter
    request: Request
    slots: TokenSlots
    combine: Combine
    layer: int

    def lookup(self) -> Tensor:
        """Not asked of a layer that chooses.

        Raises:
            AttachError: always.
        """
        raise AttachError("exchange is 'mixed', and the layer has no router; accepted for ReToken: early")

    def mix(self, chosen: Tensor, weights: Tensor) -> Tensor:
        """[B, S, D] for [B, S, K] both (Eq. 4)."""
        flat = (x.reshape(-1, x.shape[-1]) for x in (weights, chosen))
        mixed = MixAtOwner.apply(*flat, self.weight, self)
        return mixed.view(*chosen.shape[:-1], mixed.shape[-1])  # pyright: ignore

    def near(self) -> None:
        """Rows are with other processes."""

    def resident(self) -> None:
        """Rows stay there."""

    def resident_for(self, chosen: Tensor) -> None:
        """Only their mixture comes."""


class MixedFetch:
    """The request of one pass and its tokens' places in it; weights follow when a layer has chosen."""

    def __init__(self, weights: dict[int, nn.Parameter], request: Request, combine: Combine) -> None:
        self._weights, self._request, self._combine = weights, request, combine
        self._slots = send_slots(request, combine.traffic)

    def arrived(self, layer: int) -> MixedRows:
        """What the layer mixes through."""
        return MixedRows(self._weights[layer], self._request, self._slots, self._combine, layer)
