"""What a MoRT layer adds to the residual stream, from when it is chosen to where it lands (Eq. 5-6, 16)."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from retoken.ops import fused
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

    mix: fused.Mix
    """The tokens' rows, and the norm and scale of their mixture."""
    routed: fused.Routed
    """Which of them, with what weights."""
    room: fused.Room | None = None
    """Of its pass; None: it is alone in one."""

    @property
    def requires_grad(self) -> bool:
        """There is no gradient path."""
        return False

    def add_to(self, increment: Tensor) -> Tensor:
        """increment + residual (Eq. 6)."""
        try:
            return self.mix(increment, self.routed, self.room)
        except fused.Unserved:
            return Residual(self.tensor()).add_to(increment)

    def tensor(self) -> Tensor:
        """The residual itself."""
        before = self.routed.routing.chosen_TK.shape[:-1]
        return self.mix(torch.zeros((*before, self.mix.width)), self.routed, self.room)
