"""How a model's passes over a prompt, and over each token behind it, are made."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel, StaticCache

REPEATABLE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Attention that gives the same bits each time. cuDNN's, with a mask, does not from 16 sequences on
(`studies/inference/attention.csv`)."""


def repeatable() -> AbstractContextManager[Any]:
    """No other attention: what differs by itself hides whether placements do."""
    return sdpa_kernel(REPEATABLE)


class Passes(Protocol):
    """Those of one model."""

    def first(self, ids: Tensor) -> Tensor:
        """Logits [B, 1, V] behind prompts [B, P]; what was read before is forgotten."""
        ...

    def further(self, ids: Tensor) -> Tensor:
        """Logits [B, 1, V] behind one more token each, [B, 1]."""
        ...


class EagerPasses:
    """The model is called, with a cache that grows."""

    def __init__(self, model: PreTrainedModel, batch: int, room: int) -> None:
        self.model = model

    def first(self, ids: Tensor) -> Tensor:
        """As `Passes`."""
        self._cache = DynamicCache(config=self.model.config)
        return self.further(ids)

    def further(self, ids: Tensor) -> Tensor:
        """As `Passes`."""
        options = {"past_key_values": self._cache, "use_cache": True, "logits_to_keep": 1}
        return self.model(input_ids=ids, **options).logits


class _InPlacePasses:
    """A cache of one size, made once, which a compiler or a CUDA graph finds where it was."""

    def __init__(self, model: PreTrainedModel, batch: int, room: int) -> None:
        """
        Args:
            model: a causal language model.
            batch: B.
            room: tokens of the longest sequence, which keys and values are kept for from the start.
        """
        self.model, self._cache = model, StaticCache(config=model.config, max_cache_len=room)
        self._position = torch.zeros(batch, 1, dtype=torch.long, device=model.device)

    def first(self, ids: Tensor) -> Tensor:
        """As `Passes`."""
        self._cache.reset()
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        self._position.fill_(ids.shape[1] - 1)
        return self._call(ids, position)

    def _call(self, ids: Tensor, position: Tensor) -> Tensor:
        options = {"past_key_values": self._cache, "use_cache": True, "logits_to_keep": 1}
        return self.model(input_ids=ids, position_ids=position, **options).logits


class CompiledPasses(_InPlacePasses):
    """`torch.compile` reads the model for prompts, all of one size, and for further tokens: a graph each."""

    def __init__(self, model: PreTrainedModel, batch: int, room: int) -> None:
        """As `_InPlacePasses`; it is compiled with the first pass of each kind."""
        super().__init__(model, batch, room)
        options: Any = {"fullgraph": True, "dynamic": False, "isolate_recompiles": True}
        self.model = torch.compile(model, **options)

    def further(self, ids: Tensor) -> Tensor:
        """As `Passes`."""
        self._position += 1
        return self._call(ids, self._position)


class GraphPasses(_InPlacePasses):
    """Prompts call the model; a further token replays a CUDA graph of such a pass, captured here."""

    def __init__(self, model: PreTrainedModel, batch: int, room: int) -> None:
        """Capture; the model is on a GPU."""
        super().__init__(model, batch, room)
        self._ids = torch.zeros_like(self._position)
        self._captured()
        source: Any = getattr(getattr(model, "retoken", None), "source", None)
        stage = None if source is None else source.stage
        self._stage = stage if stage is not None and stage.gathered_by == "host" else None

    def further(self, ids: Tensor) -> Tensor:
        """As `Passes`; logits are written over by the next."""
        if self._stage is not None:
            self._stage.prefetch(ids)
            self._stage.wait()
        self._ids.copy_(ids)
        self._position += 1
        self._graph.replay()
        return self._logits

    def _captured(self) -> None:
        side = torch.cuda.Stream()  # of both, so that libraries have their memory for it before the capture
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._cache.reset()
                self._call(self._ids, self._position)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=side):
            self._logits = self._call(self._ids, self._position)
