"""Rows as views of the records they lie in, for a compiler that reads them in the loop that uses them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from retoken.ops.precision import widen


class StoredRows(NamedTuple):
    """A layer's part of all records, and which of them each position has: a `Fetched` of plain operators."""

    positions: Tensor
    """[...] -> 0..V-1."""
    rows: Tensor
    """[V, D] or [V, E, D] in the stored type, strided."""
    scales: Tensor | None
    """[V] or [V, E] float32; None: the type needs none."""

    def lookup(self) -> Tensor:
        """[..., D], or [..., E, D]: as stored, or float32 where rows have scales."""
        rows = self.rows[self.positions]
        return rows if self.scales is None else rows.float() * self.scales[self.positions].unsqueeze(-1)

    def mix(self, chosen: Tensor, weights: Tensor) -> Tensor:
        """[..., D] for positions [...], the others [..., K] (Eq. 4)."""
        at = (self.positions.unsqueeze(-1), chosen)
        if self.scales is not None:
            weights = weights * self.scales[at]
        return (widen(self.rows[at]) * weights.unsqueeze(-1)).sum(-2)

    def near(self) -> None:
        """Kernels are given addresses instead."""

    def resident(self) -> None:
        """There is only `lookup`."""

    def resident_for(self, chosen: Tensor) -> None:
        """There is only `mix`."""
