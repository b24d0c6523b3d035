"""What the kernels of one forward pass share: its positions' records, and memory for what they give."""

from __future__ import annotations

import ctypes
import functools
import math
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retoken.ops.fused.near import NOWHERE, PLAIN, Places, kind_of
from retoken.ops.route import Routing

WORDS = 22
"""Of a room, as `team` has them."""
SMALL = 1 << 15
"""Numbers of states up to which memory for all layers is made at once."""
ALIGNED = 64
"""Bytes: PyTorch's tensors start at multiples of that on a CPU, and compiled graphs may count on it."""


class Unserved(ValueError):
    """States that no kernel takes: others than its pass's, or of another type or device."""


class Routed(NamedTuple):
    """A choice, and where it lies: asking a tensor for that takes longer than a kernel, late in a pass."""

    routing: Routing
    logits: int
    chosen: int
    weights: int
    top_k: int
    shape: Sequence[int]
    """[...] of the positions."""

    @classmethod
    def of(cls, routing: Routing) -> Routed:
        """Of a choice made elsewhere."""
        logits, chosen, weights = routing.logits_TE, routing.chosen_TK, routing.weights_TK
        routing = Routing(logits, chosen.contiguous(), weights.contiguous())
        addresses = logits.data_ptr(), routing.chosen_TK.data_ptr(), routing.weights_TK.data_ptr()
        return cls(routing, *addresses, chosen.shape[-1], tuple(chosen.shape[:-1]))


class Room:
    """Of one forward pass; those that run at the same time have a room each."""

    __slots__ = (
        *("_alone", "_block", "_dtype", "_kind", "_layers", "_left", "_left_kind", "_routed", "_scratch"),
        *("address", "places", "records", "shape", "states", "width"),
    )

    def __init__(
        self, shape: Sequence[int], width: int, places: Places = NOWHERE, layers: int = 1, heads: int = 1
    ) -> None:
        """
        Args:
            shape: [...] of the positions.
            width: D of their states.
            places: the records whose rows they read.
            layers: how many of them will ask for memory.
            heads: H, records a position.

        Raises:
            Unserved: there are not H records for each position.
        """
        threads, (fork, parts) = torch.get_num_threads(), _team()
        self.shape, self.width, self.places = tuple(shape), width, places
        self.states = (*self.shape, width)
        """Of the states that the kernels take."""
        self.records = (width, heads if places is not NOWHERE else 0)
        """Numbers of a row, and how many records a position has."""
        positions = math.prod(self.shape)
        if places is not NOWHERE and places.count != positions * heads:
            raise Unserved(
                f"{places.count} records for positions {self.shape}; accepted: {positions * heads}"
            )
        self._layers = layers
        self._dtype: torch.dtype | None = None
        self._kind, self._left_kind, self._alone = -1, -1, False
        self._left: list[tuple[Tensor, int]] = []
        self._routed: list[Routed] = []
        self._scratch = torch.empty(threads * width)
        where = (
            *(fork, threads if fork else 1, self._scratch.data_ptr(), *parts),
            *(places.address, positions),
        )
        self._block = array("q", (*where, *[0] * (WORDS - 2 - len(where)), *self.records))
        self.address = self._block.buffer_info()[0]

    def admit(self, states: Tensor) -> int:
        """The kind of states of this pass: of others a kernel would read and write beyond the ends.

        Raises:
            Unserved: they have another shape, or are not plain tensors of a kind that kernels take, on a CPU.
        """
        known = states.dtype is self._dtype and type(states) in PLAIN and states.is_cpu
        return self._kind if known and states.shape == self.states else self._first(states)

    def _first(self, states: Tensor) -> int:
        """Of a type that the pass has not had right before."""
        if states.shape != self.states:
            raise Unserved(f"states {tuple(states.shape)}; accepted in this pass: {self.states}")
        kind = kind_of(states)
        if kind is None:
            accepted = "plain float32 or bfloat16 on a CPU"
            raise Unserved(
                f"{type(states).__name__} of {states.dtype} on {states.device}; accepted: {accepted}"
            )
        self._dtype, self._kind = states.dtype, kind
        self._alone = states.numel() > SMALL or states.nbytes % ALIGNED > 0
        return kind

    def result(self, like: Tensor) -> tuple[Tensor, int]:
        """Memory for what one layer gives, like states that have just been admitted, and its address."""
        if self._left and self._left_kind == self._kind:
            return self._left.pop()
        if self._alone:
            alone = torch.empty_like(like)
            return alone, alone.data_ptr()
        self._left_kind = self._kind
        self._left = _each(torch.empty((self._layers, *like.shape), dtype=like.dtype))
        return self._left.pop()

    def routed(self, experts: int, top_k: int) -> Routed:
        """Memory for one layer's choice."""
        if not self._routed:
            before = (self._layers, *self.shape)
            logits = _each(torch.empty((*before, experts), dtype=torch.float32))
            chosen = _each(torch.empty((*before, top_k), dtype=torch.int64))
            weights = _each(torch.empty((*before, top_k), dtype=torch.float32))
            self._routed = [
                Routed(Routing(a, b, c), at, chosen_at, weights_at, top_k, self.shape)
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
