"""What a row update works on: one table, the rows a step touched, and the step's rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What all rows of a table share in one step."""

    lr: float
    """Learning rate."""
    beta1: float
    """Decay of the first moment; the row-wise update has none and ignores it."""
    beta2: float
    """Decay of the second moment."""
    eps: float
    """Added to the root of the second moment."""
    corrections_K2: Tensor
    """[K, 2] float64, by how often a row was touched: see `bias_corrections`."""
    log_decay: float = 0.0
    """Sum of log(1 - lr * weight decay) over all steps up to and with this one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Where stochastic rounding takes its bits from: a key, and an element's place in the whole table."""

    key: int
    """64 bits, another one in every step and for every table (`noise_key`)."""
    first_row: int = 0
    """Token id of row 0; row r belongs to id `first_row` + r * `row_stride`."""
    row_stride: int = 1
    """Token ids between one row and the next."""
    first_column: int = 0
    """Place of column 0 among the numbers a token owns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamRows:
    """An AdamW update of the rows `ids_R` of one table, in place."""

    weight: Tensor
    """[V, ...] float32, float64 or bfloat16."""
    exp_avg: Tensor
    """[V, ...] first moment; float32, or float64 with such a weight."""
    exp_avg_sq: Tensor
    """[V, ...] second moment, as the first."""
    ids_R: Tensor
    """[R] int64, each row once."""
    grad: Tensor
    """[R, ...] in the weight's type."""
    rates: Rates
    """Of this step."""
    touches_V: Tensor | None = None
    """[V] int32, steps that touched a row before this one; None: `corrections_K2` has one line, for all."""
    settled_V: Tensor | None = None
    """[V] float64, the `log_decay` a row has been given already; None: rows do not decay."""
    noise: Noise | None = None
    """Stochastic rounding of a bfloat16 weight; None: to the nearest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowWiseRows:
    """A row-wise update (one scalar of state a row) of the rows `ids_R` of one table, in place."""

    weight: Tensor
    """[V, ..., D] as above."""
    mean_sq: Tensor
    """[V, ...] running mean of a row's mean squared gradient; float32, or float64 with such a weight."""
    ids_R: Tensor
    """[R] int64, each row once."""
    grad: Tensor
    """[R, ..., D] in the weight's type."""
    rates: Rates
    """Of this step."""
    touches_V: Tensor | None = None
    """As above."""
    settled_V: Tensor | None = None
    """As above."""
    noise: Noise | None = None
    """As above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecayRows:
    """The decay that rows `ids_R` have pending, in place."""

    weight: Tensor
    """[V, ...] as above."""
    ids_R: Tensor
    """[R] int64, each row once."""
    settled_V: Tensor
    """[V] float64, as above."""
    log_decay: float
    """As in `Rates`."""
    noise: Noise | None = None
    """As above."""


def bias_corrections(beta1: float, beta2: float, steps: int | None = None) -> Tensor:
    """Factors that take the start at zero out of the moments (Kingma & Ba, Alg. 1): [K, 2] float64.

    Line n - 1 is for a row's n-th touch: 1 / (1 - beta1^n), and 1 / sqrt(1 - beta2^n). The last line, where
    both are 1 to rounding, holds for all touches beyond it. Powers for each row would take as long as a short
    row.

    Args:
        beta1, beta2: From 0 to below 1.
        steps: None for that table; a number: the one line [1, 2] of this count.
    """
    if steps is not None:
        n_K = torch.tensor([float(steps)], dtype=torch.float64)
    else:
        slowest = max(beta1, beta2)
        until_one = 1 if slowest == 0 else math.ceil(-54 * math.log(2) / math.log(slowest))
        n_K = torch.arange(1, until_one + 1, dtype=torch.float64)
    return torch.stack([1 / (1 - beta1**n_K), (1 - beta2**n_K).rsqrt()], dim=1)
