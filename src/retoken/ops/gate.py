"""ReToken's gate on an MLP increment (Eq. 1-2)."""

from __future__ import annotations

from torch import Tensor

from retoken.ops.norm import normalize


def gate(increment_TD: Tensor, rows_TD: Tensor, scale_D: Tensor, gain: float, eps: float) -> Tensor:
    """increment * (1 + scale * Norm(rows)), in the increment's dtype (Eq. 1-2).

    Args:
        increment_TD: [..., D], the MLP's increment.
        rows_TD: [..., D], the tokens' rows; scale_D: [D].
        gain, eps: of Norm, see `normalize`.
    """
    modulation_TD = scale_D.float() * normalize(rows_TD, gain, eps)
    return (increment_TD.float() * (1 + modulation_TD)).to(increment_TD.dtype)
