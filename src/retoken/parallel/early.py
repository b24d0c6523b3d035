"""All rows of a token by its id alone: asked for before the first layer runs, arriving while it does."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retoken.nn import Rows
from retoken.parallel.combine import Combine
from retoken.parallel.request import Request
from retoken.parallel.traffic import Traffic


def owner_units(request: Request, width: int) -> list[int]:
    """Numbers of a token's rows at each rank: its modulators' share times D."""
    layout = request.layout
    return [len(layout.modulators(layout.place(rank)[1])) * width for rank in range(layout.ranks)]


def send_rows(weight: Tensor, request: Request, traffic: Traffic) -> tuple[Tensor, dist.Work]:
    """Start sending the asked rows of a local part [V_s, (E_s,) D]; what will have come, flat."""
    units = owner_units(request, weight.shape[-1])
    own = units[request.rank]
    data = weight.detach().index_select(0, request.asked).view(-1)
    to = [count * own for count in request.asked_counts]
    come = [n * unit for n, unit in zip(request.to_owners(request.counts_V), units, strict=True)]
    return traffic.exchange("rows", data, to, come)


def join(flat: Tensor, request: Request, row_shape: tuple[int, ...]) -> Tensor:
    """What came from the owners as [R, *row_shape], modulators side by side."""
    if request.layout.modulator_shards == 1:
        return flat.view(request.wanted, *row_shape)
    rows = flat.new_empty((request.wanted, *row_shape))
    for piece, window in zip(_pieces(flat, request, row_shape), _windows(rows, request), strict=True):
        window.copy_(piece)
    return rows


def part(rows: Tensor, request: Request) -> Tensor:
    """[R, ...] as it goes to the owners, flat: the inverse of `join`."""
    if request.layout.modulator_shards == 1:
        return rows.contiguous().view(-1)
    return torch.cat([window.reshape(-1) for window in _windows(rows, request)])


def _windows(rows: Tensor, request: Request) -> list[Tensor]:
    layout, starts = request.layout, [0]
    for count in request.counts_V:
        starts.append(starts[-1] + count)
    windows = []
    for v, e in map(layout.place, range(layout.ranks)):
        own = layout.modulators(e)
        windows.append(rows[starts[v] : starts[v + 1], own.start : own.stop])
    return windows


def _pieces(flat: Tensor, request: Request, row_shape: tuple[int, ...]) -> list[Tensor]:
    units = owner_units(request, row_shape[-1])
    counts = request.to_owners(request.counts_V)
    split = flat.split([count * unit for count, unit in zip(counts, units, strict=True)])
    width = row_shape[-1]
    return [p.view(n, unit // width, width) for p, n, unit in zip(split, counts, units, strict=True)]


class ReturnGradient(torch.autograd.Function):
    """Rows that came; backward: their gradient goes to the owners."""

    @staticmethod
    def forward(
        ctx: Any, weight: nn.Parameter, rows: Tensor, request: Request, combine: Combine, layer: int
    ) -> Tensor:
        """`rows` in float32 or wider; `weight` is the local part, for its gradient path."""
        ctx.request, ctx.combine, ctx.layer = request, combine, layer
        return rows.view_as(rows) if rows.dtype == torch.float64 else rows.float()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[None, ...]:
        """Starts the exchange; it is finished when the backward pass ends."""
        request, combine = ctx.request, ctx.combine
        units = owner_units(request, grads[0].shape[-1])
        to = [n * unit for n, unit in zip(request.to_owners(request.counts_V), units, strict=True)]
        own = units[request.rank]
        come = [count * own for count in request.asked_counts]
        flat, work = combine.traffic.exchange("gradients", part(grads[0], request), to, come)
        combine.await_rows(ctx.layer, request.touched_U, flat, work, request.place_of_asked)
        return None, None, None, None, None


class EarlyFetch:
    """The rows of one pass on their way, every layer's sent at once."""

    def __init__(self, weights: dict[int, nn.Parameter], request: Request, combine: Combine) -> None:
        self._weights, self._request, self._combine = weights, request, combine
        self._coming = {
            layer: send_rows(weight, request, combine.traffic) for layer, weight in weights.items()
        }
        self._rows: dict[int, Tensor] = {}

    def arrived(self, layer: int) -> Rows:
        """The rows of a layer; waits for them. A recomputation gets the ones of its own pass."""
        if layer not in self._rows:
            flat, work = self._coming.pop(layer)
            work.wait()
            weight, request = self._weights[layer], self._request
            shape = tuple(weight.shape[1:])
            if len(shape) == 2:
                shape = (request.layout.per_token, shape[1])
            rows = join(flat, request, shape)
            self._rows[layer] = ReturnGradient.apply(weight, rows, request, self._combine, layer)  # pyright: ignore
        return Rows(self._request.positions, self._rows[layer])
