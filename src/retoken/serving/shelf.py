"""Records in this process's address space, in memory or in a mapped file: read where they are."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from retoken.ops.fused import KINDS, Near, kernel
from retoken.ops.quantize import STORED
from retoken.serving.layout import RecordLayout
from retoken.serving.packed import PackedFile
from retoken.serving.tiers import Homes, MemoryTier, Tier


class Shelf:
    """Where each token's record lies.

    With one tier whose records are numbered by token a record's place follows from the id; otherwise an
    address a token is kept, 8 bytes each.
    """

    def __init__(self, layout: RecordLayout, homes: Homes, tiers: Sequence[Tier], prefetch: str) -> None:
        self.layout, self.prefetch = layout, prefetch
        self._tiers = tiers
        self.disk = next((tier for tier in tiers if isinstance(tier, PackedFile)), None)
        self.base, self.stride, self.address_V = _address(tiers[0]), layout.record_bytes, None
        self._disk_V: Tensor | None = None
        if len(tiers) > 1 or not torch.equal(homes.slot_V, torch.arange(layout.vocab_size)):
            bases = torch.tensor([_address(tier) for tier in tiers])
            self.address_V = bases[homes.tier_V] + homes.slot_V * layout.record_bytes
            self.base, self.stride = 0, 1
        if len(tiers) > 1 and self.disk is not None:
            self._disk_V = homes.tier_V == homes.names.index("disk")
        self._parts = {layer: self._part(number) for number, layer in enumerate(layout.layers)}
        self._last = layout.layers[-1]

    def _part(self, number: int) -> tuple[int, int]:
        """Of a layer: bytes from a record's start to its rows, and from there to its scales."""
        layout = self.layout
        start = number * layout.part_bytes
        if not layout.scale_bytes:
            return start, 0
        return start, layout.scales_start + 4 * number * layout.rows_per_layer - start

    def slots(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Of ids [...]: what the kernels find their records by, and the ids, both [T] int64."""
        flat = ids.reshape(-1).to(torch.int64).contiguous()
        return (flat if self.address_V is None else self.address_V[flat]), flat

    def near(self, slots: tuple[Tensor, Tensor], layer: int) -> Near:
        """A layer's rows."""
        layout, (start, scales) = self.layout, self._parts[layer]
        kind = STORED[layout.rows]
        ask = None
        if self.prefetch == "chosen" and self.disk is not None and layout.rows_per_token is not None:
            ask = _AskChosen(self, slots[0], layer)
        row_bytes = layout.width * kind.itemsize
        base, limit = self.base + start, layout.vocab_size if self.address_V is None else 1 << 62
        return Near(base, self.stride, limit, slots[0], KINDS[kind], row_bytes, scales, self._tiers, ask)

    def on_disk(self, ids: Tensor) -> Tensor:
        """Those of ids [T] that are read from the file."""
        return ids if self._disk_V is None else ids[self._disk_V[ids]]

    def ask(self, slots: tuple[Tensor, Tensor]) -> None:
        """Have the records read that are on disk; nobody waits."""
        if self.disk is not None:
            self.disk.ask(self.on_disk(slots[1]))

    def begin(self, slots: tuple[Tensor, Tensor]) -> None:
        """A pass over these starts."""
        if self.prefetch == "record" or (self.prefetch == "chosen" and self.layout.rows_per_token is None):
            self.ask(slots)

    def read(self, slots: tuple[Tensor, Tensor], layer: int) -> None:
        """A layer is about to read; with the last one what came from the file is checked.

        Raises:
            CheckpointError: a record has changed since it was written.
        """
        if self.disk is None:
            return
        ids = self.on_disk(slots[1])
        self.disk.count(len(ids), 1)
        if layer == self._last:
            self.disk.check(ids)


class _AskChosen:
    """Asks for the chosen rows of one layer."""

    def __init__(self, shelf: Shelf, slots: Tensor, layer: int) -> None:
        self.shelf, self.slots, self.layer = shelf, slots, layer

    def __call__(self, chosen: Tensor) -> None:
        near = self.shelf.near((self.slots, self.slots), self.layer)
        where = (near.base, self.slots.data_ptr(), near.stride, near.row_bytes)
        size = (chosen.data_ptr(), chosen.shape[-1], mmap.PAGESIZE)
        kernel.ask_chosen(*where, *size, 0, self.slots.numel())


def _address(tier: Tier) -> int:
    if isinstance(tier, PackedFile):
        return tier.address
    assert isinstance(tier, MemoryTier)
    return tier.records.data_ptr()
