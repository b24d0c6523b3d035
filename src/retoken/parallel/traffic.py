"""Bytes that leave this rank, counted where they are sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


class Traffic:
    """All-to-all in a group, with a count of what crosses a link: what a rank sends itself does not."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group
        self.size, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.sent: Counter[str] = Counter()
        """Bytes to other ranks, by what they are."""
        self.kept: Counter[str] = Counter()
        """Bytes this rank sent itself."""

    def exchange(
        self, kind: str, data: Tensor, to: Sequence[int], come: Sequence[int]
    ) -> tuple[Tensor, dist.Work]:
        """Start sending `data` [sum(to), ...], split by rank; [sum(come), ...] that will have arrived.

        Args:
            kind: what it is, for the count.
            data: contiguous; not to be written until the work is done.
            to, come: rows to and from each rank of the group.
        """
        row = data.element_size() * data[:1].numel() if data.shape[0] else 0
        self.sent[kind] += row * (sum(to) - to[self.rank])
        self.kept[kind] += row * to[self.rank]
        out = data.new_empty((sum(come), *data.shape[1:]))
        work = dist.all_to_all_single(out, data, list(come), list(to), group=self.group, async_op=True)
        return out, work  # pyright: ignore

    def exchange_now(self, kind: str, data: Tensor, to: Sequence[int], come: Sequence[int]) -> Tensor:
        """As `exchange`, arrived."""
        out, work = self.exchange(kind, data, to, come)
        work.wait()
        return out

    def counts(self, to: Sequence[int], device: torch.device) -> list[int]:
        """How much each rank will send here, if this one will send `to`."""
        ones = [1] * self.size
        return self.exchange_now("counts", torch.tensor(to, device=device), ones, ones).tolist()

    def reset(self) -> dict[str, int]:
        """What was sent since the last reset."""
        sent = dict(self.sent)
        self.sent.clear()
        self.kept.clear()
        return sent

    def state(self) -> dict[str, Any]:
        """Both counts, for a report."""
        return {"sent": dict(self.sent), "kept": dict(self.kept)}
