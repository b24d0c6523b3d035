"""Shards in the order of the token ids, as checkpoints hold them, whatever the layout of training."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from retoken.parallel.layout import Layout
from retoken.parallel.mesh import TableMesh


class Canonical:
    """Moves a table, or its optimizer state, between this layout and even ranges of token ids.

    The canonical form of [V, ...] is a DTensor on the mesh (replica, emp), replicated and Shard(0): rank r of
    the emp axis holds ids r * ceil(V / ranks) and on, as `torch.chunk` cuts. Both directions are collectives
    of the emp group, and exact.
    """

    def __init__(self, layout: Layout, mesh: TableMesh) -> None:
        self.layout, self._mesh = layout, mesh
        self.rank = mesh.emp_rank
        self._step = -(-layout.vocab_size // layout.ranks)

    @property
    def mesh(self) -> DeviceMesh:
        """(replica, emp)."""
        return self._mesh.mesh

    def global_shape(self, local: Tensor) -> torch.Size:
        """Shape of the whole whose part of this layout is `local`: [V, ...] or [V, E, ...]."""
        middle = (self.layout.per_token,) if self._divides(local) else local.shape[1:2]
        return torch.Size((self.layout.vocab_size, *middle, *local.shape[2:]))

    def to_canonical(self, local: Tensor) -> Tensor:
        """This rank's range of token ids, [ids, ...], of the tensor whose part is `local`."""
        shape = self.global_shape(local)
        here = self._ids(self.rank)
        out = local.new_zeros((len(here), *shape[1:]))
        pieces = [local[self._tokens(rank, self.rank)] for rank in range(self.layout.ranks)]
        windows = [self._window(out, owner, self.rank, local) for owner in range(self.layout.ranks)]
        self._exchange(pieces, windows)
        return out

    def from_canonical(self, chunk: Tensor, like: Tensor) -> Tensor:
        """This rank's part, shaped as `like`, of the tensor whose range of token ids is `chunk`."""
        out = torch.empty_like(like)
        pieces = [self._window(chunk, owner, self.rank, like) for owner in range(self.layout.ranks)]
        windows = [out[self._tokens(rank, self.rank)] for rank in range(self.layout.ranks)]
        self._exchange(pieces, windows)
        return out

    def _divides(self, local: Tensor) -> bool:
        return self.layout.modulator_shards > 1 and local.dim() > 1

    def _ids(self, rank: int) -> range:
        start = min(rank * self._step, self.layout.vocab_size)
        return range(start, min(start + self._step, self.layout.vocab_size))

    def _tokens(self, rank: int, owner: int) -> slice:
        """Local numbers of the owner's tokens that lie in a rank's range of ids."""
        ids, shards = self._ids(rank), self.layout.vocab_shards
        v = self.layout.place(owner)[0]
        return slice(max(0, -(-(ids.start - v) // shards)), max(0, -(-(ids.stop - v) // shards)))

    def _window(self, chunk: Tensor, owner: int, rank: int, local: Tensor) -> Tensor:
        """Where an owner's rows are in a rank's range."""
        tokens, (v, e) = self._tokens(rank, owner), self.layout.place(owner)
        first = tokens.start * self.layout.vocab_shards + v - self._ids(rank).start
        window = chunk[first :: self.layout.vocab_shards][: tokens.stop - tokens.start]
        if not self._divides(local):
            return window
        own = self.layout.modulators(e)
        return window[:, own.start : own.stop]

    def _exchange(self, pieces: list[Tensor], windows: list[Tensor]) -> None:
        data = torch.cat([piece.reshape(-1) for piece in pieces])
        come = [window.numel() for window in windows]
        out = data.new_empty(sum(come))
        to = [piece.numel() for piece in pieces]
        dist.all_to_all_single(out, data, come, to, group=self._mesh.emp)
        for window, piece in zip(windows, out.split(come), strict=True):
            window.copy_(piece.view(window.shape))
