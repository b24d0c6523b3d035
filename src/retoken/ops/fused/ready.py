"""The kernels with everything but a pass ready.

In a pass over gigabytes of weights whatever is touched between two of them has left the caches, the
interpreter's own code and objects too. So arguments are put together once, and lie in one block of memory a
layer, which the kernel reads by itself; what a pass has of its own is in its room.
"""

from __future__ import annotations

import functools
import struct
from array import array
from typing import Any

from torch import Tensor

from retoken.ops.fused.near import KINDS, SIZES, Near, Places
from retoken.ops.fused.room import Room, Routed, Unserved

NONE = -1
"""What a kernel answers where no position lacks a row."""


class _OnRows:
    """A kernel that takes increments, and what it needs besides."""

    __slots__ = ("_address", "_block", "_keep", "_kernel", "near", "width")

    def __init__(self, near: Near, scale: Tensor | None, gain: float, eps: float, kernel: Any) -> None:
        self.near, self._keep, self._kernel = near, scale, kernel
        self.width = near.row_bytes // SIZES[near.kind]
        self._block = _block(near, self.width, scale, gain, eps)
        self._address = self._block.buffer_info()[0]

    def _own(self, increment: Tensor) -> Room:
        """The room of a pass for these rows alone."""
        near = self.near
        return Room(increment.shape[:-1], self.width, Places.of(near.slots), heads=near.heads)

    def _refusal(self, wrong: int, room: Room) -> Exception:
        """What a kernel's answer means."""
        if wrong >= 0:
            return IndexError(f"token id at position {wrong} has no row")
        width, heads = room.records
        return Unserved(
            f"rows of {self.width} numbers, {self.near.heads} a position; accepted in this pass: {width} "
            f"numbers, {heads} a position"
        )


class Gate(_OnRows):
    """increment * (1 + scale * Norm(row)) (Eq. 1-2)."""

    __slots__ = ()

    def __init__(self, near: Near, scale: Tensor | None, gain: float, eps: float) -> None:
        """Make ready.

        Args:
            near: one row a position.
            scale: [D]; None: the rows are folded and hold P - 1 (Eq. 8).
            gain, eps: of Norm, see `ops.normalize`.
        """
        super().__init__(near, scale, gain, eps, passes().gate)

    def __call__(self, increment: Tensor, room: Room | None = None) -> Tensor:
        """[..., D] in the increment's type, float32 or bfloat16.

        Args:
            increment: [..., D].
            room: of a pass over other records; None: of those of `near`.

        Raises:
            IndexError: a position has no row.
            Unserved: the increments are not [..., D] for as many positions as there are rows.
        """
        room = room or self._own(increment)
        kind, increment = room.admit(increment), increment.contiguous()
        out, at = room.result(increment)
        wrong = self._kernel(self._address, increment.data_ptr(), kind, at, room.address)
        if wrong != NONE:
            raise self._refusal(wrong, room)
        return out


class Mix(_OnRows):
    """increment + scale * Norm(sum_k w_k row_k) (Eq. 4-6)."""

    __slots__ = ()

    def __init__(self, near: Near, scale: Tensor | None, gain: float, eps: float) -> None:
        """Make ready.

        Args:
            near: E rows a record; those of a position's records are summed.
            scale: [D]; None: the mixture is added as it is (folded with K = 1).
            gain, eps: of Norm, with 1 / sqrt(2 N_l) in the gain.
        """
        super().__init__(near, scale, gain, eps, passes().mix)

    def __call__(self, increment: Tensor, routed: Routed, room: Room | None = None) -> Tensor:
        """[..., D] in the increment's type, float32 or bfloat16, for the choice of the same positions.

        Args:
            increment: [..., D].
            routed: the choice.
            room: as `Gate`'s.

        Raises:
            IndexError: a position has no rows.
            Unserved: the increments are not [..., D] for as many positions as there are rows.
        """
        room = room or self._own(increment)
        kind, increment = room.admit(increment), increment.contiguous()
        if routed.shape != room.shape:
            raise Unserved(f"a choice for positions {routed.shape}; accepted in this pass: {room.shape}")
        out, at = room.result(increment)
        choice = (routed.chosen, routed.weights, routed.top_k)
        wrong = self._kernel(self._address, *choice, increment.data_ptr(), kind, at, room.address)
        if wrong != NONE:
            raise self._refusal(wrong, room)
        return out


class Route:
    """`ops.route`; logits in float32, added up in another order (Eq. 3)."""

    __slots__ = ("_address", "_block", "_keep", "_kernel", "_top_k", "experts", "width")

    def __init__(self, router: Tensor, top_k: int) -> None:
        """Make ready.

        Args:
            router: [E, D], float32 or bfloat16.
            top_k: K.
        """
        self._keep = router = router.contiguous()
        self._kernel, self._top_k = passes().route, top_k
        self.experts, self.width = router.shape
        self._block = array("q", (router.data_ptr(), KINDS[router.dtype], self.width, self.experts, top_k))
        self._address = self._block.buffer_info()[0]

    def __call__(self, hidden: Tensor, room: Room | None = None) -> Routed:
        """The choice for hidden states [..., D], float32 or bfloat16.

        Args:
            hidden: [..., D].
            room: of the pass this is part of; None: of a pass of its own.

        Raises:
            Unserved: the states have another width than the router, or are not the pass's.
        """
        room = room or Room(hidden.shape[:-1], self.width)
        kind, hidden = room.admit(hidden), hidden.contiguous()
        routed = room.routed(self.experts, self._top_k)
        where = (hidden.data_ptr(), kind, routed.logits, routed.chosen, routed.weights)
        if self._kernel(self._address, *where, room.address) != NONE:
            raise Unserved(f"a router of {self.width} numbers; accepted in this pass: {room.width}")
        return routed


def _block(near: Near, width: int, scale: Tensor | None, gain: float, eps: float) -> array[int]:
    """What a kernel reads of the rows and of Norm; `kernel` has the order."""
    vector = (0, 0) if scale is None else (scale.data_ptr(), KINDS[scale.dtype])
    return array(
        "q",
        (
            *(near.base, near.stride, near.limit, near.kind, near.scales, near.row_bytes),
            *(width, *vector, _as_word(gain, eps), near.heads),
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
