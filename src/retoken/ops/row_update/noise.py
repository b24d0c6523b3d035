"""Random bits by counter: the same for an element whatever the threads, devices, shards and restarts.

A row's key mixes (seed, step, table, token id) to 64 bits with SplitMix64's finalizer (Steele, Lea & Flood
2014). An element's bits are a 32-bit hash of its column under that key: two multiplications, so that it
vectorizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retoken.ops.row_update.jobs import Noise

MASK32, MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
GOLDEN64, MIX64_A, MIX64_B = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
GOLDEN32, MIX32_A, MIX32_B = 0x9E3779B9, 0x7FEB352D, 0x846CA68B


def noise_key(*parts: int) -> int:
    """64 bits that differ where any of the numbers does."""
    key = 0
    for part in parts:
        key = _mix64((key ^ part) * GOLDEN64 + GOLDEN64 & MASK64)
    return key


def noise_bits(noise: Noise, ids_R: Tensor, columns: int) -> Tensor:
    """[R, columns] int64 of 16 random bits each, for rows `ids_R`."""
    places_R = ids_R * noise.row_stride + noise.first_row
    key_R1 = _mix64_of((places_R + 1) * _signed(GOLDEN64) + _signed(noise.key)).unsqueeze(1)
    column_N = torch.arange(columns, device=ids_R.device) + noise.first_column
    x = (column_N * GOLDEN32 + key_R1) & MASK32
    x = ((x ^ (x >> 16)) * MIX32_A) & MASK32
    x = x ^ ((key_R1 >> 32) & MASK32)
    x = ((x ^ (x >> 15)) * MIX32_B) & MASK32
    return x >> 16


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """float32 `values` to bfloat16, up with the probability that makes the expectation exact.

    `bits` are 16 random bits an element: added below the last kept one, they carry in that proportion.
    Infinities and NaN stay what they are.
    """
    raw = values.contiguous().view(torch.int32).to(torch.int64) & MASK32
    rounded = (raw + bits.view_as(raw)) & 0xFFFF0000
    rounded = torch.where(rounded >= 1 << 31, rounded - (1 << 32), rounded)
    chosen = rounded.to(torch.int32).view(torch.float32).to(torch.bfloat16)
    return torch.where(values.isfinite(), chosen, values.to(torch.bfloat16))


def _mix64(x: int) -> int:
    x = (x ^ (x >> 30)) * MIX64_A & MASK64
    x = (x ^ (x >> 27)) * MIX64_B & MASK64
    return x ^ (x >> 31)


def _mix64_of(x: Tensor) -> Tensor:
    """The same in int64, whose products wrap; a shift must not bring in copies of the sign."""
    x = (x ^ ((x >> 30) & (MASK64 >> 30))) * _signed(MIX64_A)
    x = (x ^ ((x >> 27) & (MASK64 >> 27))) * _signed(MIX64_B)
    return x ^ ((x >> 31) & (MASK64 >> 31))


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x
