"""What one process holds of a tensor, and how a sharded table's own layout becomes that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a tensor. Checkpoints know tensors as boxes only, so any division becomes any other."""

    tensor: Tensor
    offsets: tuple[int, ...]
    """Its first element in the whole tensor."""
    shape: tuple[int, ...]
    """The whole tensor's."""


class Canonical(Protocol):
    """How one table, and its optimizer state, lie on the processes in training.

    In a checkpoint they lie in rows: process r of N has the r-th part of `torch.chunk` over N, as DTensor's
    Shard(0). Both directions are collectives of all processes.
    """

    def to_canonical(self, local: Tensor) -> Tensor:
        """This process's rows [v, ...] of the tensor that the processes hold as `local`s [V_local, ...]."""
        ...

    def from_canonical(self, chunk: Tensor, like: Tensor) -> Tensor:
        """The part of this process in training, from rows [v, ...]; `like` is the table's own part."""
        ...

    def global_shape(self, local: Tensor) -> torch.Size:
        """[V, ...], the shape of the whole."""
        ...


def whole(tensor: Tensor) -> Chunk:
    """A tensor that this process holds all of."""
    return Chunk(tensor, (0,) * tensor.dim(), tuple(tensor.shape))


def of_dtensor(tensor: DTensor) -> Chunk | None:
    """The local part of a DTensor; None where this process is not one of its mesh."""
    boxes = tensor.__create_chunk_list__() if tensor.device_mesh.get_coordinate() is not None else []
    if not boxes:
        return None
    return Chunk(tensor.to_local(), tuple(boxes[0].offsets), tuple(tensor.shape))


def rows_of(rank: int, size: int, length: int) -> tuple[int, int]:
    """First and last-but-one row of a process's canonical part: torch.chunk's, empty ones at the end."""
    per_rank = -(-length // size)
    return min(rank * per_rank, length), min((rank + 1) * per_rank, length)


def canonical_chunk(rows: Tensor, rank: int, size: int, shape: tuple[int, ...]) -> Chunk:
    """A process's canonical rows of a tensor of that shape."""
    first, last = rows_of(rank, size, shape[0])
    assert rows.shape == (last - first, *shape[1:]), (rows.shape, first, last, shape)
    return Chunk(rows, (first, *(0,) * (len(shape) - 1)), tuple(shape))
