"""The paper's own protocol for rows that are off the device, as the yardstick (Sec. 3.3.2, steps 1 to 5).

Nothing is asked for ahead: a layer routes, requests the chosen rows, waits until they have been fetched, and
computes with plain operators.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from retoken.ops.quantize import STORED, dequantize
from retoken.serving.layout import RecordLayout


class SynchronousRows:
    """Records [V, record_bytes], in host memory or in a mapped file; rows are fetched when asked (step 1)."""

    def __init__(self, layout: RecordLayout, records: Tensor, dtype: torch.dtype) -> None:
        self.layout, self.records, self.dtype = layout, records, dtype

    def __deepcopy__(self, memo: Any) -> SynchronousRows:
        """A copy of a model reads the same records."""
        return self

    def fetch(self, ids: Tensor) -> SynchronousFetch:
        """Nothing yet: rows are fetched layer by layer."""
        return SynchronousFetch(self, ids)

    def prefetch(self, ids: Tensor) -> None:
        """Nothing: the protocol has none."""


class SynchronousFetch(NamedTuple):
    """One pass."""

    source: SynchronousRows
    ids: Tensor
    """[B, S]"""

    def arrived(self, layer: int) -> SynchronousLayer:
        """What a layer asks."""
        return SynchronousLayer(self.source, self.ids, layer)


class SynchronousLayer(NamedTuple):
    """One layer of one pass."""

    source: SynchronousRows
    ids: Tensor
    layer: int

    def lookup(self) -> Tensor:
        """The one row of each token: [B, S, D]."""
        return self._fetch(torch.zeros_like(self.ids).unsqueeze(-1)).squeeze(-2)

    def mix(self, chosen: Tensor, weights: Tensor) -> Tensor:
        """Steps 3 to 5: request the chosen rows, fetch them, and mix: [B, S, D] float32 (Eq. 4)."""
        return (self._fetch(chosen).float() * weights.unsqueeze(-1)).sum(-2)

    def near(self) -> None:
        """Rows are not read in place."""

    def _fetch(self, chosen: Tensor) -> Tensor:
        """Rows [B, S, K, D]."""
        layout, records = self.source.layout, self.source.records
        number, kind = layout.layers.index(self.layer), STORED[layout.rows]
        start, count = number * layout.part_bytes, layout.rows_per_layer
        part = records[:, start : start + count * layout.width * kind.itemsize].view(kind)
        ids = self.ids.unsqueeze(-1)
        rows = part.unflatten(1, (count, layout.width))[ids, chosen]
        if not layout.scale_bytes:
            return rows.to(self.source.dtype)
        scales = records[:, layout.scales_start : layout.scales_start + layout.scale_bytes]
        own = scales.view(torch.float32).unflatten(1, (-1, count))[ids, number, chosen]
        return dequantize(rows, own, self.source.dtype)
