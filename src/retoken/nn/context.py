"""What one forward pass of the backbone hands from layer to layer, by value."""

from __future__ import annotations

from torch import Tensor

from retoken.errors import AttachError
from retoken.ops import Routing


class ForwardContext:
    """The token ids of one forward pass, and what its layers leave for later ones.

    It travels as an argument, so that an activation checkpoint recomputes with the ids it ran with. An entry
    with a gradient path is never overwritten: a recomputation's copy would not carry the real one.
    """

    def __init__(self, ids: Tensor, mask: Tensor | None = None) -> None:
        self.ids = ids
        """[B, S] token ids."""
        self.mask = mask
        """[B, S], false where padded; None when nothing is."""
        self.residuals: dict[int, Tensor] = {}
        """Layer -> its MoRT residual [B, S, D], until it lands (Eq. 16)."""
        self.routings: dict[int, Routing] = {}
        """Layer -> what its router chose."""

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

    def leave(self, layer: int, residual: Tensor, routing: Routing) -> None:
        """Keep a layer's residual for the layer where it lands, and its routing for the balance loss."""
        kept, known = self.residuals.get(layer), self.routings.get(layer)
        if kept is None or (residual.requires_grad and not kept.requires_grad):
            self.residuals[layer] = residual
        if known is None or (routing.logits_TE.requires_grad and not known.logits_TE.requires_grad):
            self.routings[layer] = routing

    def land(self, layer: int, here: bool) -> Tensor:
        """The residual of `layer`; dropped when it lands `here`, where a recomputation makes it anew.

        A delayed one stays: the layer where it lands is recomputed before the layer that made it.
        """
        return self.residuals.pop(layer) if here else self.residuals[layer]
