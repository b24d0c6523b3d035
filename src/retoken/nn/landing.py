"""What a MoRT layer adds to the residual stream, from when it is chosen to where it lands (Eq. 5-6, 16)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from retoken.ops import Routing, fused
from retoken.ops.precision import widen


class Landing(Protocol):
    """The residual of one layer in one pass."""

    @property
    def requires_grad(self) -> bool:
        """Whether there is a gradient path through it."""
        ...

    def add_to(self, increment: Tensor) -> Tensor:
        """increment + residual, [B, S, D] in the increment's type (Eq. 6)."""
        ...

    def tensor(self) -> Tensor:
        """The residual itself, [B, S, D] float32."""
        ...


class Residual(NamedTuple):
    """One that has been computed."""

    residual: Tensor
    """[B, S, D], float32 or wider."""

    @property
    def requires_grad(self) -> bool:
        """Whether there is a gradient path through it."""
        return self.residual.requires_grad

    def add_to(self, increment: Tensor) -> Tensor:
        """increment + residual (Eq. 6)."""
        return (widen(increment) + self.residual.to(increment.device)).to(increment.dtype)

    def tensor(self) -> Tensor:
        """The residual itself."""
        return self.residual


class Mixture(NamedTuple):
    """One whose rows are read where it lands, in the same pass over memory that adds them: inference only."""

    near: fused.Near
    """The tokens' rows."""
    routing: Routing
    """Which of them, with what weights."""
    scale: Tensor | None
    """[D]; None: the mixture is the residual."""
    gain: float
    """Of Norm, with 1 / sqrt(2 N_l)."""
    eps: float
    """Of Norm."""

    @property
    def requires_grad(self) -> bool:
        """There is no gradient path."""
        return False

    def add_to(self, increment: Tensor) -> Tensor:
        """increment + residual (Eq. 6)."""
        if not fused.serves(increment):
            return Residual(self.tensor()).add_to(increment)
        return fused.mix_into(self.near, increment, self.routing, self.scale, self.gain, self.eps)

    def tensor(self) -> Tensor:
        """The residual itself."""
        before = self.routing.chosen_TK.shape[:-1]
        width = self.near.row_bytes // fused.SIZES[self.near.kind]
        nothing = torch.zeros((*before, width))
        return fused.mix_into(self.near, nothing, self.routing, self.scale, self.gain, self.eps)
