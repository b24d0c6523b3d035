"""What one forward pass of the backbone hands from layer to layer, by value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from retoken.errors import AttachError
from retoken.nn.landing import Landing
from retoken.nn.table import Fetched
from retoken.ops.fused import Places, Room


class Ready(NamedTuple):
    """What modulators do in one pass that kernels can serve, all but its states put together."""

    layers: Mapping[int, Callable[..., Any]]
    """{layer: what `forward` gives, of its states and the room}."""
    room: Room | None
    """Of the pass; None: no layer is served."""


NOT_READY = Ready(MappingProxyType({}), None)


class Fetch(Protocol):
    """The rows of one forward pass, possibly still on their way."""

    def arrived(self, layer: int) -> Fetched:
        """The rows of a layer; waits for them."""
        ...


@runtime_checkable
class NearFetch(Protocol):
    """A fetch whose rows may lie where kernels can read them."""

    @property
    def source(self) -> RowSource:
        """What fetches."""
        ...

    def places(self) -> Places | None:
        """The records of its positions; None: they do not lie there."""
        ...

    def at_hand(self, layer: int) -> Fetched | None:
        """The rows of a layer, needing no wait; None: its layer has to ask for them when it runs."""
        ...


class RowSource(Protocol):
    """Fetches the rows of a whole pass, for all layers at once, where tables are not simply indexed."""

    def fetch(self, ids: Tensor) -> Fetch | None:
        """Ask for the rows of ids [B, S]; None where each layer had better look them up itself."""
        ...

    def prefetch(self, ids: Tensor) -> None:
        """Ask for the rows of the pass after this one; `fetch` of the same ids then finds them."""
        ...


class ForwardContext:
    """The token ids of one forward pass, and what its layers leave for later ones.

    It travels as an argument, so that an activation checkpoint recomputes with the ids it ran with.
    """

    def __init__(
        self,
        ids: Tensor,
        fetch: Fetch | None = None,
        ready: Ready = NOT_READY,
        index: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.ids = ids
        """[B, S] token ids."""
        self.index = ids if index is None else index
        """[B, S], or [B, S, H]: which rows of a table these positions read; the ids, unless hashed."""
        self.mask = mask
        """[B, S], false at padding; None: there is none."""
        self.fetch = fetch
        """The rows fetched for them; None: each layer looks them up in its table."""
        self.ready = ready
        """What modulators do with states, as `ModulatorStack.ready` has it."""
        self.delayed: dict[int, Landing] = {}
        """Layer -> its MoRT residual [B, S, D], on its way to a later layer (Eq. 16)."""
        self.embedded: Tensor | None = None
        """[B, S, D] what the first layer was given, where a later one reads it too."""

    def index_for(self, hidden: Tensor) -> Tensor:
        """Which rows the positions of `hidden` [B, S, D] read, [B, S] or [B, S, H].

        Raises:
            AttachError: the layer sees other positions than the ids of this pass.
        """
        if hidden.shape[:-1] != self.ids.shape:
            raise AttachError(
                f"hidden states of shape {tuple(hidden.shape)} do not match input_ids of shape "
                f"{tuple(self.ids.shape)}; pass the whole input as input_ids"
            )
        return self.index

    def fetched(self, layer: int) -> Fetched | None:
        """What was fetched for a layer, arrived."""
        return None if self.fetch is None else self.fetch.arrived(layer)

    def leave(self, layer: int, residual: Landing) -> None:
        """Keep a layer's residual for a later layer, which is recomputed first and must find the one it read.

        So one with a gradient path is never overwritten: a recomputation's copy would not carry the real one.
        """
        kept = self.delayed.get(layer)
        if kept is None or (residual.requires_grad and not kept.requires_grad):
            self.delayed[layer] = residual
