"""ReToken's gate on an MLP increment (Eq. 1-2)."""

from __future__ import annotations

from torch import Tensor

from retoken.ops.norm import normalize
from retoken.ops.precision import widen


def gate(increment_TD: Tensor, rows_TD: Tensor, scale_D: Tensor, gain: float, eps: float) -> Tensor:
    """increment * (1 + scale * Norm(rows)), in the increment's dtype (Eq. 1-2).

    Args:
        increment_TD: [..., D], the MLP's increment.
        rows_TD: [..., D], the tokens' rows; scale_D: [D].
        gain, eps: of Norm, see `normalize`.
    """
    modulation_TD = widen(scale_D) * normalize(rows_TD, gain, eps)
    return (widen(increment_TD) * (1 + modulation_TD)).to(increment_TD.dtype)
