"""What one token owns, as one record: the rows of all layers one after the other, read in one go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor

from retoken.errors import ConfigError
from retoken.ops.quantize import LARGEST, STORED, dequantize, quantize

RECORD_ALIGN = 64
PART_ALIGN = 16
CHECK_SEED = 0x5EED


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


@dataclass(frozen=True, kw_only=True)
class RecordLayout:
    """Where in a token's record each layer's rows lie."""

    vocab_size: int
    """V, the number of records."""
    layers: tuple[int, ...]
    """Layers that carry a table, in the record's order."""
    rows_per_token: int | None
    """E of a MoRT table [V, E, D]; None for a ReToken table [V, D]."""
    width: int
    """D."""
    rows: str
    """Row type: float32, bfloat16, int8 or float8_e4m3."""
    folded: bool = False
    """Whether the rows are of a folded model (Eq. 8)."""

    def __post_init__(self) -> None:
        if self.rows not in STORED:
            raise ConfigError(f"rows is {self.rows!r}; accepted: {', '.join(STORED)}")
        object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def rows_per_layer(self) -> int:
        """Rows a token owns in one layer."""
        return self.rows_per_token or 1

    @property
    def part_bytes(self) -> int:
        """From one layer's rows to the next layer's."""
        return _up(self.rows_per_layer * self.width * STORED[self.rows].itemsize, PART_ALIGN)

    @property
    def scales_start(self) -> int:
        """Where the scales are: float32, the rows of the first layer first."""
        return self.part_bytes * len(self.layers)

    @property
    def scale_bytes(self) -> int:
        """Bytes of all scales of a token; 0 for types that need none."""
        return 4 * self.rows_per_layer * len(self.layers) if self.rows in LARGEST else 0

    @property
    def record_bytes(self) -> int:
        """Bytes from one token's record to the next one's; the last four are the check."""
        return _up(self.scales_start + self.scale_bytes + 4, RECORD_ALIGN)

    @property
    def bytes(self) -> int:
        """All records."""
        return self.vocab_size * self.record_bytes

    def encode(self, rows: Mapping[int, Tensor]) -> Tensor:
        """Records [R, record_bytes] uint8 from {layer: rows [R, D] or [R, E, D]}."""
        count = rows[self.layers[0]].shape[0]
        records = torch.zeros(count, self.record_bytes, dtype=torch.uint8)
        for layer in self.layers:
            for start, piece in self.pieces(layer, rows[layer]):
                records[:, start : start + piece.shape[1]] = piece
        records.view(torch.int32)[:, -1] = self.check_of(records)
        return records

    def pieces(self, layer: int, rows: Tensor) -> list[tuple[int, Tensor]]:
        """A layer's rows [R, D] or [R, E, D] as they lie in records: (first byte, bytes [R, n]) a piece."""
        count, number = rows.shape[0], self.layers.index(layer)
        wide = rows.detach().cpu().reshape(count, self.rows_per_layer, self.width)
        stored, scale = quantize(wide, self.rows)
        found = [(number * self.part_bytes, stored.contiguous().view(torch.uint8).reshape(count, -1))]
        if scale is not None:
            start = self.scales_start + number * self.layer_scale_bytes
            found.append((start, scale.float().contiguous().view(torch.uint8).reshape(count, -1)))
        return found

    def views(self, records: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
        """A layer's part of records [R, record_bytes], as views of them.

        Returns:
            Rows [R, D] or [R, E, D] as stored; scales [R] or [R, E], None where the type needs none.
        """
        number, stored = self.layers.index(layer), STORED[self.rows]
        start, used = number * self.part_bytes, self.rows_per_layer * self.width * stored.itemsize
        rows = records[:, start : start + used].view(stored).unflatten(1, (self.rows_per_layer, self.width))
        scales = self._scales(records)[:, number] if self.scale_bytes else None
        if self.rows_per_token is None:
            return rows[:, 0], None if scales is None else scales[:, 0]
        return rows, scales

    def decode(self, records: Tensor, layer: int, dtype: torch.dtype) -> Tensor:
        """A layer's rows, [R, D] or [R, E, D] in `dtype`, from records [R, record_bytes]."""
        return dequantize(*self.views(records, layer), dtype)

    @property
    def layer_scale_bytes(self) -> int:
        """Bytes of one layer's scales."""
        return self.scale_bytes // len(self.layers)

    @property
    def staged_bytes(self) -> int:
        """Bytes of one layer's rows and scales, as `parts_of` puts them side by side."""
        return _up(self.part_bytes + self.layer_scale_bytes, PART_ALIGN)

    def parts_of(self, records: Tensor, first: int, out: Tensor) -> None:
        """Rows and scales of P layers from the `first`-th on, of records [R, record_bytes].

        To out [P, R, staged_bytes].
        """
        size, at = self.layer_scale_bytes, self.part_bytes
        out[..., :at] = self._of_layers(records, first * at, len(out), at)
        if size:
            start = self.scales_start + first * size
            out[..., at : at + size] = self._of_layers(records, start, len(out), size)

    @staticmethod
    def _of_layers(records: Tensor, start: int, count: int, size: int) -> Tensor:
        """`count` pieces of `size` bytes of each record, layers first: [count, R, size]."""
        return records[:, start : start + count * size].unflatten(1, (count, size)).transpose(0, 1)

    def decode_part(self, parts: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows [R, D] or [R, E, D] in `dtype`, from what `parts_of` gave of it."""
        stored = STORED[self.rows]
        used = self.rows_per_layer * self.width * stored.itemsize
        scales = parts[:, self.part_bytes : self.part_bytes + self.layer_scale_bytes]
        scale = scales.contiguous().view(torch.float32) if self.scale_bytes else None
        rows = parts[:, :used].view(stored).unflatten(1, (self.rows_per_layer, self.width))
        out = dequantize(rows, scale, dtype)
        return out.squeeze(1) if self.rows_per_token is None else out

    def _scales(self, records: Tensor) -> Tensor:
        """[R, L, E] float32, a view."""
        part = records[:, self.scales_start : self.scales_start + self.scale_bytes].view(torch.float32)
        return part.unflatten(1, (len(self.layers), self.rows_per_layer))

    def check_of(self, records: Tensor) -> Tensor:
        """The last four bytes of records [R, record_bytes], [R] int32: they tell damage, not forgery."""
        words = records.view(torch.int32)[:, :-1]
        weights = torch.arange(1, 2 * words.shape[1], 2, dtype=torch.int32, device=records.device)
        return (words * weights).sum(1, dtype=torch.int64).add(CHECK_SEED).to(torch.int32)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "layers": list(self.layers), "record_bytes": self.record_bytes}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RecordLayout:
        """What `to_dict` wrote.

        Raises:
            ValueError, TypeError, KeyError: not such a dict, or records of another size than this version's.
        """
        layout = cls(**{f.name: values[f.name] for f in fields(cls)})
        if values["record_bytes"] != layout.record_bytes:
            raise ValueError(f"record_bytes is {values['record_bytes']}, expected {layout.record_bytes}")
        return layout
