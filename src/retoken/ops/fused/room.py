"""What the kernels of one forward pass share: memory for what they give, and for threads that share work."""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retoken.ops.route import Routing

WORDS = 18
"""Of a room, as `team` has them."""
SMALL = 1 << 15
"""Numbers of a state up to which memory for all layers is made at once."""
ALIGNED = 64
"""Bytes: PyTorch's tensors start at multiples of that on a CPU, and compiled graphs may count on it."""


class Routed(NamedTuple):
    """A choice, and where it lies: asking a tensor for that takes longer than a kernel, late in a pass."""

    routing: Routing
    logits: int
    chosen: int
    weights: int
    top_k: int

    @classmethod
    def of(cls, routing: Routing) -> Routed:
        """Of a choice made elsewhere."""
        logits, chosen, weights = routing.logits_TE, routing.chosen_TK, routing.weights_TK
        routing = Routing(logits, chosen.contiguous(), weights.contiguous())
        addresses = logits.data_ptr(), routing.chosen_TK.data_ptr(), routing.weights_TK.data_ptr()
        return cls(routing, *addresses, chosen.shape[-1])


class Room:
    """Memory for one forward pass. Passes that run at the same time have a room each."""

    __slots__ = ("_block", "_kind", "_layers", "_left", "_routed", "_scratch", "address", "shape")

    def __init__(self, shape: Sequence[int] | None = None, layers: int = 1, width: int = 0) -> None:
        """
        Args:
            shape: [...] of the positions, if states of others are to be refused.
            layers: how many of them will ask for memory.
            width: D, if there are rows to mix.
        """
        threads, (fork, parts) = torch.get_num_threads(), _team()
        self.shape = None if shape is None else tuple(shape)
        self._layers = layers
        self._kind = -1
        self._left: list[tuple[Tensor, int]] = []
        self._routed: list[Routed] = []
        self._scratch = torch.empty(threads * width)
        where = (fork, threads if fork else 1, self._scratch.data_ptr(), *parts)
        self._block = array("q", (*where, *[0] * (WORDS - len(where))))
        self.address = self._block.buffer_info()[0]

    def result(self, like: Tensor, kind: int) -> tuple[Tensor, int]:
        """Memory for what one layer gives, like states of a kind (KINDS), and its address."""
        if self._left and kind == self._kind:
            return self._left.pop()
        if like.numel() > SMALL or like.nbytes % ALIGNED:
            alone = torch.empty_like(like)
            return alone, alone.data_ptr()
        self._kind, self._left = kind, _each(torch.empty((self._layers, *like.shape), dtype=like.dtype))
        return self._left.pop()

    def routed(self, positions: Sequence[int], experts: int, top_k: int) -> Routed:
        """Memory for one layer's choice."""
        if not self._routed:
            before = (self._layers, *positions)
            logits = _each(torch.empty((*before, experts), dtype=torch.float32))
            chosen = _each(torch.empty((*before, top_k), dtype=torch.int64))
            weights = _each(torch.empty((*before, top_k), dtype=torch.float32))
            self._routed = [
                Routed(Routing(a, b, c), at, chosen_at, weights_at, top_k)
                for (a, at), (b, chosen_at), (c, weights_at) in zip(logits, chosen, weights, strict=True)
            ]
        return self._routed.pop()


def _each(whole: Tensor) -> list[tuple[Tensor, int]]:
    """The parts of [N, ...], and their addresses."""
    parts = whole.unbind()
    start, size = whole.data_ptr(), whole.nbytes // max(len(parts), 1)
    return [(part, start + n * size) for n, part in enumerate(parts)]


@functools.cache
def _team() -> tuple[int, tuple[int, ...]]:
    """Addresses of OpenMP's fork, 0 where PyTorch has none of that name, and of the kernels' parts."""
    from retoken.ops.fused import team

    try:
        fork: Any = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return 0, team.ADDRESSES
    return ctypes.cast(fork, ctypes.c_void_p).value or 0, team.ADDRESSES
