"""Rows in fewer bytes: one float32 scale a row, from the row's largest element."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

RowType = Literal["float32", "bfloat16", "int8", "float8_e4m3"]
STORED: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "float8_e4m3": torch.float8_e4m3fn,
}
LARGEST = {"int8": 127.0, "float8_e4m3": 448.0}
"""What a row's largest element becomes, for the types that need a scale."""


def quantize(rows_RD: Tensor, row_type: str) -> tuple[Tensor, Tensor | None]:
    """Rows [..., D] in `row_type`, and the float32 scale [...] of each; None where the type needs none.

    Off by at most, with m the row's largest |element|: int8 m / 254; float8_e4m3 |u| / 16 or m / 458752,
    whichever is more; bfloat16 |u| / 256.
    """
    if row_type not in LARGEST:
        return rows_RD.to(STORED[row_type]), None
    wide = rows_RD.float()
    scale = wide.abs().amax(-1) / LARGEST[row_type]
    steps = wide / torch.where(scale > 0, scale, 1.0).unsqueeze(-1)
    if row_type == "int8":
        steps = steps.round_()
    limit = LARGEST[row_type]
    return steps.clamp_(-limit, limit).to(STORED[row_type]), scale


def dequantize(stored_RD: Tensor, scale_R: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Rows [..., D] in `dtype`, contiguous, from what `quantize` gave."""
    if scale_R is None:
        return stored_RD.to(dtype).contiguous()
    return (stored_RD.float() * scale_R.unsqueeze(-1)).to(dtype)
