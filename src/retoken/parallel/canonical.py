"""Shards in the order of the token ids, as checkpoints hold them, whatever the layout of training."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from retoken.parallel.layout import Layout
from retoken.parallel.mesh import TableMesh


class Canonical:
    """Moves a table, or its optimizer state, between this layout and even ranges of token ids.

    In the canonical form of [V, ...] process r of all N holds ids r * ceil(V / N) and on, as `torch.chunk`
    cuts. Both directions are collectives of all processes, and exact.
    """

    def __init__(self, layout: Layout, mesh: TableMesh) -> None:
        self.layout, self._mesh = layout, mesh
        self.rank = mesh.emp_rank
        self._step = -(-layout.vocab_size // mesh.world)
        self._replica = dist.get_rank(mesh.replica)

    def global_shape(self, local: Tensor) -> torch.Size:
        """Shape of the whole whose part of this layout is `local`: [V, ...] or [V, E, ...]."""
        middle = (self.layout.per_token,) if self._divides(local) else local.shape[1:2]
        return torch.Size((self.layout.vocab_size, *middle, *local.shape[2:]))

    def to_canonical(self, local: Tensor) -> Tensor:
        """This process's range of token ids, [ids, ...], of the tensor whose part is `local`."""
        ids, owners = self._ids(self.rank, self._replica), range(self.layout.ranks)
        out = local.new_zeros((len(ids), *self.global_shape(local)[1:]))
        pieces = [local[self._tokens(rank, self.rank, self._replica)] for rank in owners]
        windows = [self._window(out, owner, self.rank, self._replica) for owner in owners]
        self._exchange(pieces, windows)
        return out

    def from_canonical(self, chunk: Tensor, like: Tensor) -> Tensor:
        """This rank's part, on the device of `like`, of the tensor whose range of token ids is `chunk`."""
        whole = torch.Size((self.layout.vocab_size, *chunk.shape[1:]))
        out = chunk.new_empty(self.layout.local_shape(self.rank, whole), device=like.device)
        owners = range(self.layout.ranks)
        for replica in range(self._mesh.replicas):
            shape = (len(self._ids(self.rank, replica)), *chunk.shape[1:])
            part = chunk.contiguous() if replica == self._replica else chunk.new_empty(shape)
            if self._mesh.replicas > 1:
                dist.broadcast(part, group=self._mesh.replica, group_src=replica)
            pieces = [self._window(part, owner, self.rank, replica) for owner in owners]
            windows = [out[self._tokens(rank, self.rank, replica)] for rank in owners]
            self._exchange(pieces, windows)
        return out

    def _divides(self, local: Tensor) -> bool:
        return self.layout.modulator_shards > 1 and local.dim() > 1

    def _ids(self, rank: int, replica: int) -> range:
        """Token ids of the process at (replica, rank)."""
        vocab_size = self.layout.vocab_size
        start = min((replica * self.layout.ranks + rank) * self._step, vocab_size)
        return range(start, min(start + self._step, vocab_size))

    def _tokens(self, rank: int, owner: int, replica: int) -> slice:
        """Local numbers of the owner's tokens that lie in a process's range of ids."""
        ids, shards = self._ids(rank, replica), self.layout.vocab_shards
        v = self.layout.place(owner)[0]
        return slice(max(0, -(-(ids.start - v) // shards)), max(0, -(-(ids.stop - v) // shards)))

    def _window(self, chunk: Tensor, owner: int, rank: int, replica: int) -> Tensor:
        """Where an owner's rows are in a process's range."""
        tokens, (v, e) = self._tokens(rank, owner, replica), self.layout.place(owner)
        first = tokens.start * self.layout.vocab_shards + v - self._ids(rank, replica).start
        window = chunk[first :: self.layout.vocab_shards][: tokens.stop - tokens.start]
        if not self._divides(chunk):
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
