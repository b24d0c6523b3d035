"""What one forward pass of the backbone hands from layer to layer, by value."""

from __future__ import annotations

from torch import Tensor

from retoken.errors import AttachError


class ForwardContext:
    """The token ids of one forward pass, and what its layers leave for later ones.

    It travels as an argument, so that an activation checkpoint recomputes with the ids it ran with.
    """

    def __init__(self, ids: Tensor) -> None:
        self.ids = ids
        """[B, S] token ids."""
        self.delayed: dict[int, Tensor] = {}
        """Layer -> its MoRT residual [B, S, D], on its way to a later layer (Eq. 16)."""

    def ids_for(self, hidden: Tensor) -> Tensor:
        """The ids on the device of `hidden` [B, S, D].

        Raises:
            AttachError: the layer sees other positions than the ids of this pass.
        """
        if hidden.shape[:-1] != self.ids.shape:
            raise AttachError(
                f"hidden states of shape {tuple(hidden.shape)} do not match input_ids of shape "
                f"{tuple(self.ids.shape)}; pass the whole input as input_ids"
            )
        return self.ids.to(hidden.device)

    def leave(self, layer: int, residual: Tensor) -> None:
        """Keep a layer's residual for a later layer, which is recomputed first and must find the one it read.

        So one with a gradient path is never overwritten: a recomputation's copy would not carry the real one.
        """
        kept = self.delayed.get(layer)
        if kept is None or (residual.requires_grad and not kept.requires_grad):
            self.delayed[layer] = residual
