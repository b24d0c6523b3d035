"""Rows in any row type without a file of them: rounded when a pass asks. To measure, not to serve."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from retoken.attach.api import stack_of
from retoken.nn import Rows
from retoken.serving.layout import RecordLayout
from retoken.serving.reader import RowReader, layout_of


class _Computed:
    """The records of one pass."""

    def __init__(self, source: ComputedRows, records: Tensor, positions: Tensor) -> None:
        self._source, self._records, self._positions = source, records, positions

    def arrived(self, layer: int) -> Rows:
        """The rows of a layer, on the device that computes."""
        rows = self._source.layout.decode(self._records, layer, self._source.dtype)
        return Rows(self._positions.to(self._source.device), rows.to(self._source.device))


class ComputedRows:
    """Reads a pass's distinct rows and rounds them as a packed file would have them."""

    def __init__(
        self, reader: RowReader, layout: RecordLayout, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.reader, self.layout, self.dtype, self.device = reader, layout, dtype, device

    @torch.no_grad()
    def fetch(self, ids: Tensor) -> _Computed:
        """The rows of ids [B, S]."""
        ids_R, positions = torch.unique(ids, return_inverse=True)
        return _Computed(self, self.layout.encode(self.reader.some(ids_R.cpu())), positions)

    def prefetch(self, ids: Tensor) -> None:
        """Nothing is fetched ahead."""


def compute_rows(model: PreTrainedModel, reader: RowReader, rows: str | None = None) -> RecordLayout:
    """Let a model without tables read rows as a file of row type `rows` would give them.

    Args:
        model: built without tables, where it is to compute. A second call takes the place of the first.
        reader: its rows.
        rows: float32, bfloat16, int8 or float8_e4m3; None: as they are.

    Returns:
        The records' layout.

    Raises:
        ConfigError: no such row type.
    """
    layout = layout_of(reader, rows)
    stack_of(model).source = ComputedRows(reader, layout, model.dtype, model.device)
    return layout
