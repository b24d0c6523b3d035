"""Records in this process's address space, in memory or in a mapped file: read where they are."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from retoken.ops.fused import KINDS, Near, kernels
from retoken.ops.quantize import STORED
from retoken.serving.layout import RecordLayout
from retoken.serving.packed import PackedFile
from retoken.serving.tiers import Homes, MemoryTier, Tier

Prefetch = Literal["record", "chosen", "none"]
"""What is asked of the disk ahead: a token's whole record when its id is known, the rows that a router has
chosen when it has, or nothing. ReToken has nothing to choose: "chosen" is "record" for it."""

REPEATED = 32
"""Positions of a pass from which on a record that several of them have is asked for, and checked, once."""


class Wanted(NamedTuple):
    """The records of one pass's T positions."""

    slots: Tensor
    """[T] int64: what the kernels find a record by."""
    from_file: Tensor
    """[F] int64: numbers of those that are read from the file, each once where there are many."""
    files: int
    """F."""


class Shelf:
    """Where each token's record lies.

    With one tier whose records are numbered by token a record's place follows from the id; otherwise an
    address a token is kept, 8 bytes each.
    """

    def __init__(self, layout: RecordLayout, homes: Homes, tiers: Sequence[Tier], prefetch: Prefetch) -> None:
        self.layout, self.prefetch, self._tiers = layout, prefetch, tiers
        self.disk = next((tier for tier in tiers if isinstance(tier, PackedFile)), None)
        self.base, self.stride, self.address_V = _address(tiers[0]), layout.record_bytes, None
        if len(tiers) > 1 or not torch.equal(homes.slot_V, torch.arange(layout.vocab_size)):
            bases = torch.tensor([_address(tier) for tier in tiers])
            self.address_V = bases[homes.tier_V] + homes.slot_V * layout.record_bytes
            self.base, self.stride = 0, 1
        kind = STORED[layout.rows]
        self.kind, self.row_bytes = KINDS[kind], layout.width * kind.itemsize
        self.limit = layout.vocab_size if self.address_V is None else 1 << 62
        self._disk_V: Tensor | None = None
        if len(tiers) > 1 and self.disk is not None:
            self._disk_V = homes.tier_V == homes.names.index("disk")
        self._number_V: Tensor | None = None if self.disk is None else self.disk.number_V
        self._parts = {layer: self._part(number) for number, layer in enumerate(layout.layers)}
        self._last = layout.layers[-1]
        self._chosen = prefetch == "chosen" and self.disk is not None and layout.rows_per_token is not None

    def _part(self, number: int) -> tuple[int, int]:
        """Of a layer: bytes from a record's start to its rows, and from there to its scales."""
        layout = self.layout
        start = number * layout.part_bytes
        if not layout.scale_bytes:
            return start, 0
        return start, layout.scales_start + 4 * number * layout.rows_per_layer - start

    def wanted(self, ids: Tensor) -> Wanted:
        """The records of ids [...]."""
        flat = ids.reshape(-1).to(torch.int64).contiguous()
        slots = flat if self.address_V is None else self.address_V[flat]
        if self.disk is None:
            return Wanted(slots, flat[:0], 0)
        ids = flat if len(flat) < REPEATED else flat.unique()
        from_file = ids if self._disk_V is None else ids[self._disk_V[ids]]
        from_file = from_file if self._number_V is None else self._number_V[from_file]
        return Wanted(slots, from_file, len(from_file))

    def begin(self, wanted: Wanted) -> None:
        """A pass over these is about to start: what is known to be needed is asked for."""
        if self.disk is None or not wanted.files:
            return
        self.disk.settle()
        self.disk.count(wanted.from_file)
        if self._chosen:
            self.disk.ask(self.disk.unchecked(wanted.from_file))
        elif self.prefetch != "none":
            self.disk.ask(wanted.from_file)

    def read(self, wanted: Wanted, layer: int) -> None:
        """A layer is about to read; with the last one what came from the file is checked.

        Raises:
            CheckpointError: a record has changed since it was written.
        """
        if layer == self._last:
            self.check(wanted)

    def views(self, layer: int) -> tuple[Tensor, Tensor | None] | None:
        """A layer's part of all records by token, as `RecordLayout.views`; None: by token they lie apart."""
        if self.address_V is not None or self._chosen:
            return None
        tier = self._tiers[0]
        records = tier.records() if isinstance(tier, PackedFile) else tier.records  # pyright: ignore
        return self.layout.views(records, layer)

    def checks_with(self, wanted: Wanted, layer: int) -> bool:
        """Whether reading this layer checks what came from the file."""
        return self.disk is not None and wanted.files > 0 and layer == self._last

    def check(self, wanted: Wanted) -> None:
        """Look whether the records that are read from the file are as they were written.

        Raises:
            CheckpointError: one is not.
        """
        if self.disk is not None and wanted.files:
            self.disk.check(wanted.from_file)

    def near(self, wanted: Wanted, layer: int) -> Near:
        """A layer's rows."""
        start, scales = self._parts[layer]
        where = (self.base + start, self.stride, self.limit, wanted.slots)
        ask = _ask_chosen if self._chosen else None
        return Near(*where, self.kind, self.row_bytes, scales, self._tiers, ask)


def _ask_chosen(near: Near, slots: Tensor, chosen: Tensor) -> None:
    """Ask for the rows of one layer that were chosen, [..., K], of the records of all these positions."""
    positions, top_k = len(slots) // near.heads, chosen.shape[-1]
    if chosen.numel() != positions * top_k:
        return  # states of other positions, which are refused where rows are read
    where = (near.base, slots.data_ptr(), near.heads, near.stride, near.row_bytes)
    kernels().ask_chosen(*where, chosen.data_ptr(), top_k, mmap.PAGESIZE, 0, positions)


def _address(tier: Tier) -> int:
    if isinstance(tier, PackedFile):
        return tier.address
    assert isinstance(tier, MemoryTier)
    return tier.records.data_ptr()
