"""Norm of Eq. 1 and 5, in float32 whatever the rows' type."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from retoken.config import Norm
from retoken.ops.precision import widen


def norm_gain(norm: Norm, width: int) -> float:
    """What an L2-normalised row of `width` is multiplied by: 1 for "l2", sqrt(width) for "rms"."""
    return math.sqrt(width) if norm == "rms" else 1.0


def normalize(u: Tensor, gain: float, eps: float) -> Tensor:
    """gain * u / (||u||_2 + eps) over the last dimension, float32 or wider (below Eq. 1).

    The gradient at a zero row is gain / eps: such a row is neutral, but its first step is a large one.
    """
    u = widen(u)
    return u * (gain / (torch.linalg.vector_norm(u, dim=-1, keepdim=True) + eps))
