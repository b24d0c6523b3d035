"""One pass of the engine's model: its token ids, its rows, and what its layers leave for later ones."""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context

from retoken.errors import AttachError
from retoken.nn import Landing, ModulatorStack
from retoken.ops import fused

_NAME = "retoken"


class Pass:
    """What the layers of one pass share. It lives as long as vLLM's forward context."""

    def __init__(self, stack: ModulatorStack, modules: dict[int, nn.Module], index: Tensor) -> None:
        """Asks for the rows of all layers at once.

        Args:
            stack: all modulators.
            modules: {layer: its modulator}.
            index: [T], or [T, H] where several are summed: the rows that positions read.
        """
        self.modules = modules
        self.index = index
        self.fetch = stack.fetch(index)
        self.ready = stack.ready(index, self.fetch)
        self.landings: dict[int, Landing] = {}
        self.seen = 0
        """How many layers have had their rows."""

    def gate(self, increment: Tensor, layer: int) -> Tensor:
        """The gated increment [..., D] (Eq. 2)."""
        self.seen += 1
        return _like(self._modulate(self._flat(increment), layer), increment)

    def route(self, hidden: Tensor, layer: int) -> None:
        """Choose for hidden states [..., D], and keep the residual for where it lands (Eq. 3)."""
        self.landings[layer], _ = self._modulate(self._flat(hidden), layer)

    def add(self, increment: Tensor, layer: int) -> Tensor:
        """The increment [..., D] and the residual of `layer` (Eq. 6)."""
        self.seen += 1
        return _like(self.landings.pop(layer).add_to(self._flat(increment)), increment)

    def finish(self) -> None:
        """Look whether every modulator has been asked: one that was left out would not show otherwise.

        Raises:
            AttachError: one has not.
        """
        if self.seen != len(self.modules):
            raise AttachError(
                f"{self.seen} of {len(self.modules)} modulated layers had their rows in this pass; this "
                "version of vLLM runs its layers in a way that is not known here"
            )

    def _modulate(self, flat: Tensor, layer: int) -> Any:
        """What the layer's modulator gives for states [T, D]."""
        ready = self.ready.layers.get(layer)
        if ready is not None:
            try:
                return ready(flat, self.ready.room)
            except fused.Unserved:
                pass  # by the module, which serves all types
        return self.modules[layer](flat, self.index, self._fetched(layer))

    def _fetched(self, layer: int) -> Any:
        return None if self.fetch is None else self.fetch.arrived(layer)

    def _flat(self, states: Tensor) -> Tensor:
        flat = states if states.dim() == 2 else states.reshape(-1, states.shape[-1])
        if len(flat) != len(self.index):
            raise AttachError(
                f"states of {len(flat)} positions in a pass over {len(self.index)} token ids; accepted: one "
                "id a position (no sequence parallelism within layers)"
            )
        return flat


def _like(flat: Tensor, states: Tensor) -> Tensor:
    """States [T, D] in the shape of others: mostly that is the same, and a view takes time."""
    return flat if states.dim() == 2 else flat.view(states.shape)


def ids_of(given: Any, vocab_size: int) -> Tensor:
    """The token ids [T] of a pass, from what the engine's model is given.

    The engine pads a pass with whatever ids are left from an earlier one and drops what comes out there: such
    an id must not lead out of a table.

    Raises:
        AttachError: there are none: the engine was given embeddings.
    """
    if given is None:
        raise AttachError(
            "token-indexed parameters need token ids, and this pass has embeddings only; accepted: prompts "
            "of text or of token ids"
        )
    return given.reshape(-1).to(torch.int64).clamp(0, vocab_size - 1)


def begin(stack: ModulatorStack, modules: dict[int, nn.Module], index: Tensor) -> Pass:
    """A pass starts whose positions read the rows `index`, [T] or [T, H]."""
    started = get_forward_context().additional_kwargs[_NAME] = Pass(stack, modules, index)
    return started


def current() -> Pass:
    """The pass under way.

    Raises:
        AttachError: a layer runs outside of its model.
    """
    found = get_forward_context().additional_kwargs.get(_NAME)
    if found is None:
        raise AttachError("a modulated layer has no token ids: it was called without its model")
    return found
