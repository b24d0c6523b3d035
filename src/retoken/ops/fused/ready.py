"""The kernels with everything but the states made ready.

In a pass over gigabytes of weights whatever is touched between two of them has left the caches, the
interpreter's own code and objects too. So arguments are put together for all layers at once, while that is
warm, and lie in one block of memory each, which the kernel reads by itself.
"""

from __future__ import annotations

import functools
import struct
from array import array
from typing import Any, Self

from torch import Tensor

from retoken.ops.fused.near import KINDS, SIZES, Near, Places, kind_of
from retoken.ops.fused.room import Room, Routed

SLOTS = 1
"""Where a block has the address of slots."""


class Unserved(ValueError):
    """States that a kernel was not made ready for: others than its pass's, or of another type or device."""


class _OnRows:
    """A kernel that takes increments, and what it needs besides."""

    __slots__ = (
        *("_address", "_block", "_keep", "_kernel", "_places", "_positions", "_room"),
        *("_shape", "near", "width"),
    )
    _places: Places
    """Of a pass: what keeps its slots."""

    def __init__(
        self, near: Near, scale: Tensor | None, gain: float, eps: float, kernel: Any, room: Room
    ) -> None:
        self.near, self._keep, self._kernel, self._room = near, scale, kernel, room
        self.width = near.row_bytes // SIZES[near.kind]
        self._positions = near.positions
        self._shape = None if room.shape is None else (*room.shape, self.width)
        self._block = _block(near, self.width, scale, gain, eps)
        self._address = self._block.buffer_info()[0]

    def at(self, places: Places, room: Room | None = None) -> Self:
        """The same for the records of other positions, in another pass; nothing is checked anew."""
        other = object.__new__(type(self))
        other.near = near = self.near if self.near.ask is None else self.near._replace(slots=places.slots)
        other._keep, other._kernel, other.width = self._keep, self._kernel, self.width
        other._places, other._positions = places, places.count // near.heads
        other._room = room  # pyright: ignore
        other._shape = None if room is None or room.shape is None else (*room.shape, self.width)
        other._block = block = self._block[:]
        block[SLOTS] = places.address
        other._address = block.buffer_info()[0]
        return other

    def _kind(self, increment: Tensor) -> int:
        """The type of states that the rows are for: a kernel would read and write beyond others' ends."""
        if increment.shape != self._shape:
            self._accept(increment)
        return _served_kind(increment)

    def _accept(self, increment: Tensor) -> None:
        width = increment.shape[-1] if increment.dim() else 0
        fits = width == self.width and increment.numel() == self._positions * width
        if self._shape is not None or not fits:
            raise Unserved(
                f"increments {tuple(increment.shape)} with rows of {self.width} numbers for "
                f"{self._positions} positions; accepted: {self._shape or '[..., D] for as many positions'}"
            )


class Gate(_OnRows):
    """increment * (1 + scale * Norm(row)) (Eq. 1-2)."""

    __slots__ = ()

    def __init__(
        self, near: Near, scale: Tensor | None, gain: float, eps: float, room: Room | None = None
    ) -> None:
        """Make ready.

        Args:
            near: one row a position.
            scale: [D]; None: the rows are folded and hold P - 1 (Eq. 8).
            gain, eps: of Norm, see `ops.normalize`.
            room: of the pass this is part of, which may have a shape that increments must have.
        """
        super().__init__(near, scale, gain, eps, passes().gate, room or Room())

    def __call__(self, increment: Tensor) -> Tensor:
        """[..., D] in the increment's type, float32 or bfloat16.

        Raises:
            IndexError: a position has no row.
            Unserved: the increments are not [..., D] for as many positions as there are rows.
        """
        kind = self._kind(increment)
        increment = increment.contiguous()
        out, at = self._room.result(increment, kind)
        where = (increment.data_ptr(), kind, at, self._positions, self._room.address)
        wrong = self._kernel(self._address, *where)
        if wrong >= 0:
            raise _no_row(wrong)
        return out


class Mix(_OnRows):
    """increment + scale * Norm(sum_k w_k row_k) (Eq. 4-6)."""

    __slots__ = ()

    def __init__(
        self, near: Near, scale: Tensor | None, gain: float, eps: float, room: Room | None = None
    ) -> None:
        """Make ready.

        Args:
            near: E rows a record; those of a position's records are summed.
            scale: [D]; None: the mixture is added as it is (folded with K = 1).
            gain, eps: of Norm, with 1 / sqrt(2 N_l) in the gain.
            room: as `Gate`'s, for rows of this width.
        """
        room = room or Room(width=near.row_bytes // SIZES[near.kind])
        super().__init__(near, scale, gain, eps, passes().mix, room)

    def __call__(self, increment: Tensor, routed: Routed) -> Tensor:
        """[..., D] in the increment's type, float32 or bfloat16, for the choice of the same positions.

        Raises:
            IndexError: a position has no rows.
            Unserved: the increments are not [..., D] for as many positions as there are rows.
        """
        kind = self._kind(increment)
        increment = increment.contiguous()
        out, at = self._room.result(increment, kind)
        choice = (routed.chosen, routed.weights, routed.top_k)
        where = (increment.data_ptr(), kind, at, self._positions, self._room.address)
        wrong = self._kernel(self._address, *choice, *where)
        if wrong >= 0:
            raise _no_row(wrong)
        return out


class Route:
    """`ops.route`; logits in float32, added up in another order (Eq. 3)."""

    __slots__ = ("_address", "_block", "_keep", "_kernel", "_room", "_shape", "_top_k", "experts", "width")

    def __init__(self, router: Tensor, top_k: int, room: Room | None = None) -> None:
        """Make ready.

        Args:
            router: [E, D], float32 or bfloat16.
            top_k: K.
            room: of the pass this is part of, which may have a shape that states must have.
        """
        self._keep = router = router.contiguous()
        self._kernel, self._top_k, self._room = passes().route, top_k, room or Room()
        self.experts, self.width = router.shape
        self._shape = None if self._room.shape is None else (*self._room.shape, self.width)
        self._block = array("q", (router.data_ptr(), KINDS[router.dtype], self.width, self.experts, top_k))
        self._address = self._block.buffer_info()[0]

    def at(self, room: Room | None) -> Route:
        """The same in another pass; nothing is checked anew."""
        other = object.__new__(Route)
        other._keep, other._kernel, other._top_k = self._keep, self._kernel, self._top_k
        other.experts, other.width = self.experts, self.width
        other._block, other._address, other._room = self._block, self._address, room  # pyright: ignore
        other._shape = None if room is None or room.shape is None else (*room.shape, self.width)
        return other

    def __call__(self, hidden: Tensor) -> Routed:
        """The choice for hidden states [..., D], float32 or bfloat16.

        Raises:
            Unserved: the states have another width than the router.
        """
        shape = hidden.shape
        if shape != self._shape and (self._shape is not None or shape[-1:] != (self.width,)):
            accepted = self._shape or f"[..., {self.width}]"
            raise Unserved(f"states {tuple(shape)}; accepted by this router: {accepted}")
        kind, hidden, before = _served_kind(hidden), hidden.contiguous(), shape[:-1]
        routed = self._room.routed(before, self.experts, self._top_k)
        where = (hidden.data_ptr(), kind, routed.logits, routed.chosen, routed.weights)
        self._kernel(self._address, *where, before.numel(), self._room.address)
        return routed


def _served_kind(states: Tensor) -> int:
    kind = kind_of(states)
    if kind is None:
        accepted = "plain float32 or bfloat16 on a CPU"
        raise Unserved(f"{type(states).__name__} of {states.dtype} on {states.device}; accepted: {accepted}")
    return kind


def _block(near: Near, width: int, scale: Tensor | None, gain: float, eps: float) -> array[int]:
    """What a kernel reads of the rows and of Norm; `kernel` has the order."""
    vector = (0, 0) if scale is None else (scale.data_ptr(), KINDS[scale.dtype])
    return array(
        "q",
        (
            *(near.base, near.slots.data_ptr(), near.stride, near.limit, near.kind, near.scales),
            *(near.row_bytes, width, *vector, _as_word(gain, eps), near.heads),
        ),
    )


@functools.lru_cache(64)
def _as_word(gain: float, eps: float) -> int:
    """Two float32 in eight bytes."""
    return struct.unpack("=q", struct.pack("=ff", gain, eps))[0]


@functools.cache
def kernels() -> Any:
    """Compiled when first used: importing numba takes a second."""
    from retoken.ops.fused import kernel

    return kernel


@functools.cache
def passes() -> Any:
    """`kernels`, of all positions at once."""
    from retoken.ops.fused import team

    return team


def _no_row(position: int) -> IndexError:
    return IndexError(f"token id at position {position} has no row")
