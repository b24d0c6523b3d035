"""The paper's own protocol for rows that are off the device, as the yardstick (Sec. 3.3.2, steps 1 to 5).

Nothing is asked for ahead: a layer routes, requests the chosen rows, waits until they have been fetched, and
computes with plain operators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retoken.ops.quantize import dequantize
from retoken.serving.layout import RecordLayout

Views = Mapping[int, tuple[Tensor, Tensor | None]]
"""{layer: its part of all records}, as `RecordLayout.views`."""


class SynchronousRows:
    """Records in host memory or in a mapped file; rows are fetched when asked (step 1)."""

    def __init__(self, layout: RecordLayout, views: Views, dtype: torch.dtype) -> None:
        self.layout, self.views, self.dtype = layout, views, dtype

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
        return self._fetch(self.ids)

    def mix(self, chosen: Tensor, weights: Tensor) -> Tensor:
        """Steps 3 to 5: request the chosen rows, fetch them, and mix: [B, S, D] float32 (Eq. 4)."""
        rows = self._fetch((self.ids.unsqueeze(-1), chosen))
        return (rows.float() * weights.unsqueeze(-1)).sum(-2)

    def near(self) -> None:
        """Rows are not read in place."""

    def _fetch(self, at: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Rows [..., D] of tokens, or of tokens and the modulators chosen."""
        rows, scales = self.source.views[self.layer]
        return dequantize(rows[at], None if scales is None else scales[at], self.source.dtype)
