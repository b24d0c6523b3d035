"""The processes that write and read one checkpoint together."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch.distributed as dist


@dataclass(frozen=True, kw_only=True, slots=True)
class Peers:
    """This process among them. They have a process group of their own: a checkpoint is written while training
    goes on, and its messages must not meet those of the step.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    """None where this process is alone."""

    @classmethod
    def open(cls, timeout: timedelta | None = None) -> Peers:
        """All processes of the default group; a collective of them.

        Args:
            timeout: How long one waits for another; None: as the default group.
        """
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        group: Any = dist.new_group(backend="gloo", timeout=timeout)
        return cls(rank=dist.get_rank(), size=dist.get_world_size(), group=group)

    @property
    def lead(self) -> bool:
        """Whether this process names, renames and deletes folders."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in all of them."""
        found: list[Any] = [value]
        if self.group is not None:
            found = [None] * self.size
            dist.all_gather_object(found, value, group=self.group)
        return found
