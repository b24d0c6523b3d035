"""Gradients at their owners: summed over tokens, ranks and copies, each row once (App. B, step 4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retoken.parallel.mesh import TableMesh
from retoken.parallel.traffic import Traffic
from retoken.rows import add_row_gradient


class _Coming(NamedTuple):
    layer: int
    touched_U: Tensor
    flat: Tensor
    work: dist.Work | None
    place: Tensor | None


class Combine:
    """Collects what a backward pass sends to this rank's rows, and adds it to their gradients at its end.

    Gradients are averages over the ranks, as the backbone's are.
    """

    def __init__(
        self, weights: Callable[[], dict[int, nn.Parameter]], mesh: TableMesh, traffic: Traffic
    ) -> None:
        self._weights, self._mesh = weights, mesh
        self.traffic = traffic
        self.replica_traffic = Traffic(mesh.replica) if mesh.replicas > 1 else None
        self._coming: list[_Coming] = []

    def await_rows(
        self, layer: int, touched_U: Tensor, flat: Tensor, work: dist.Work | None, place: Tensor | None
    ) -> None:
        """Row gradients are coming.

        Args:
            layer: whose.
            touched_U: the rows of this shard that the pass touched in that layer; sorted, each once.
            flat: what comes, one gradient after the other.
            work: when it will have come; None: it has.
            place: [N], which of `touched_U` each is for; where a row has several modulators, one after the
                other. None: the sums of `touched_U` themselves.
        """
        if not self._coming:
            torch.autograd.Variable._execution_engine.queue_callback(self.finish)
        self._coming.append(_Coming(layer, touched_U, flat, work, place))

    @torch.no_grad()
    def finish(self) -> None:
        """Wait for all that was sent, in the order it was asked for; runs when a backward pass ends."""
        coming, self._coming = self._coming, []
        for item in coming:
            if item.work is not None:
                item.work.wait()
            self._add(item)

    def _add(self, item: _Coming) -> None:
        weight = self._weights()[item.layer]
        touched, total = item.touched_U, self._summed(item, weight)
        if self.replica_traffic is not None:
            touched, total = _over_replicas(touched, total, self.replica_traffic)
        add_row_gradient(weight, touched, total)

    def _summed(self, item: _Coming, weight: nn.Parameter) -> Tensor:
        count = item.touched_U.numel()
        shape = (count, *weight.shape[1:])
        if item.place is None:
            return item.flat.view(shape).div_(self._mesh.world)
        if item.place.numel() == 0 or weight[:1].numel() == 0:
            return item.flat.new_zeros(shape)
        unit = item.flat.numel() // item.place.numel()
        total = item.flat.new_zeros((count * weight[:1].numel() // unit, unit))
        total.index_add_(0, item.place, item.flat.view(-1, unit), alpha=1 / self._mesh.world)
        return total.view(shape)


def _over_replicas(touched: Tensor, rows: Tensor, traffic: Traffic) -> tuple[Tensor, Tensor]:
    """(ids, rows) summed over the copies of this shard, in the same order on each."""
    counts = _all_counts(touched.numel(), traffic, touched.device)
    everyone = _broadcast_each("replica ids", touched, counts, traffic)
    both, place = torch.unique(torch.cat(everyone), return_inverse=True)
    total = rows.new_zeros((both.numel(), *rows.shape[1:]))
    parts = _broadcast_each("replica gradients", rows, counts, traffic)
    for part, at in zip(parts, place.split(counts), strict=True):
        total.index_add_(0, at, part)
    return both, total


def _all_counts(count: int, traffic: Traffic, device: torch.device) -> list[int]:
    out = torch.empty(traffic.size, dtype=torch.int64, device=device)
    traffic.sent["replica counts"] += out.element_size() * (traffic.size - 1)
    dist.all_gather_into_tensor(out, torch.tensor([count], device=device), group=traffic.group)
    return out.tolist()


def _broadcast_each(kind: str, data: Tensor, counts: list[int], traffic: Traffic) -> list[Tensor]:
    """Every copy's `data`, whose sizes differ, from each copy in turn."""
    parts = [
        data if rank == traffic.rank else data.new_empty((count, *data.shape[1:]))
        for rank, count in enumerate(counts)
    ]
    traffic.sent[kind] += data.numel() * data.element_size() * (traffic.size - 1)
    works = [
        dist.broadcast(part, group=traffic.group, group_src=rank, async_op=True)
        for rank, part in enumerate(parts)
    ]
    for work in works:
        work.wait()  # pyright: ignore
    return parts
