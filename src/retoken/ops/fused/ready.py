"""The kernels with everything but the states made ready.

In a pass over gigabytes of weights whatever is touched between two of them has left the caches, the
interpreter's own code and objects too. So arguments are put together for all layers at once, while that is
warm, and lie in one block of memory each, which the kernel reads by itself.
"""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from retoken.ops.fused.near import KINDS, SIZES, Near
from retoken.ops.route import Routing
from retoken.ops.row_update.threads import divide

LEAST = 1 << 19
"""Numbers of a state that are worth a thread's call."""
ENOUGH = 2 * LEAST
"""Numbers from which threads share the work."""


class _OnRows:
    """A kernel that takes increments, and what it needs besides."""

    __slots__ = ("_address", "_block", "_keep", "_kernel", "_numbers", "_positions", "near", "width")

    def __init__(self, near: Near, scale: Tensor | None, gain: float, eps: float, kernel: Any) -> None:
        self.near, self._keep, self._kernel = near, scale, kernel
        self.width = near.row_bytes // SIZES[near.kind]
        self._positions = near.slots.numel()
        self._numbers = self._positions * self.width
        self._block = _block(near, self.width, scale, gain, eps)
        self._address = self._block.buffer_info()[0]

    def _refusal(self, increment: Tensor) -> ValueError:
        """Of states that the rows are not for: a kernel would read and write beyond their ends."""
        return ValueError(
            f"increments {tuple(increment.shape)} with rows of {self.width} numbers "
            f"for {self._positions} positions; accepted: [..., D] for as many positions"
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
        super().__init__(near, scale, gain, eps, kernels().gate)

    def __call__(self, increment: Tensor) -> Tensor:
        """[..., D] in the increment's type, float32 or bfloat16.

        Raises:
            IndexError: a position has no row.
            ValueError: the increments are not [..., D] for as many positions as there are rows.
        """
        if increment.numel() != self._numbers or increment.shape[-1] != self.width:
            raise self._refusal(increment)
        increment = increment.contiguous()
        out = torch.empty_like(increment)
        fixed = (self._address, increment.data_ptr(), KINDS[increment.dtype], out.data_ptr())
        if self._numbers < ENOUGH:
            wrong = self._kernel(*fixed, 0, self._positions)
            if wrong >= 0:
                raise _no_row(wrong)
        else:
            _run(self._kernel, fixed, self._positions, self.width)
        return out


class Mix(_OnRows):
    """increment + scale * Norm(sum_k w_k row_k) (Eq. 4-6)."""

    __slots__ = ()

    def __init__(self, near: Near, scale: Tensor | None, gain: float, eps: float) -> None:
        """Make ready.

        Args:
            near: E rows a position.
            scale: [D]; None: the mixture is added as it is (folded with K = 1).
            gain, eps: of Norm, with 1 / sqrt(2 N_l) in the gain.
        """
        super().__init__(near, scale, gain, eps, kernels().mix)

    def __call__(self, increment: Tensor, routing: Routing) -> Tensor:
        """[..., D] in the increment's type, float32 or bfloat16, for the choice of the same positions.

        Raises:
            IndexError: a position has no rows.
            ValueError: the increments are not [..., D] for as many positions as there are rows.
        """
        if increment.numel() != self._numbers or increment.shape[-1] != self.width:
            raise self._refusal(increment)
        increment = increment.contiguous()
        out, chosen = torch.empty_like(increment), routing.chosen_TK
        fixed = (
            *(self._address, chosen.data_ptr(), routing.weights_TK.data_ptr(), chosen.shape[-1]),
            *(increment.data_ptr(), KINDS[increment.dtype], out.data_ptr()),
        )
        if self._numbers < ENOUGH:
            mixed = torch.empty(self.width)
            wrong = self._kernel(*fixed, mixed.data_ptr(), 0, self._positions)
            if wrong >= 0:
                raise _no_row(wrong)
        else:
            _run(self._mix, fixed, self._positions, self.width)
        return out

    def _mix(self, *where: int) -> int:
        """One thread's part, with room of its own."""
        mixed = torch.empty(self.width)
        return self._kernel(*where[:-2], mixed.data_ptr(), *where[-2:])


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
        self._kernel, self._top_k = kernels().route, top_k
        self.experts, self.width = router.shape
        self._block = array("q", (router.data_ptr(), KINDS[router.dtype], self.width, self.experts, top_k))
        self._address = self._block.buffer_info()[0]

    def __call__(self, hidden: Tensor) -> Routing:
        """The choice for hidden states [..., D], float32 or bfloat16.

        Raises:
            ValueError: the states have another width than the router.
        """
        hidden = hidden.contiguous()
        *before, width = hidden.shape
        if width != self.width:
            raise ValueError(f"states of {width} numbers; accepted by this router: {self.width}")
        logits = torch.empty((*before, self.experts), dtype=torch.float32)
        chosen = torch.empty((*before, self._top_k), dtype=torch.int64)
        weights = torch.empty((*before, self._top_k), dtype=torch.float32)
        fixed = (
            *(self._address, hidden.data_ptr(), KINDS[hidden.dtype]),
            *(logits.data_ptr(), chosen.data_ptr(), weights.data_ptr()),
        )
        numbers = hidden.numel()
        if numbers < ENOUGH:
            self._kernel(*fixed, 0, numbers // width)
        else:
            _run(self._kernel, fixed, numbers // width, width)
        return Routing(logits, chosen, weights)


def _block(near: Near, width: int, scale: Tensor | None, gain: float, eps: float) -> array[int]:
    """What a kernel reads of the rows and of Norm; `kernel` has the order."""
    vector = (0, 0) if scale is None else (scale.data_ptr(), KINDS[scale.dtype])
    return array(
        "q",
        (
            *(near.base, near.slots.data_ptr(), near.stride, near.limit, near.kind, near.scales),
            *(near.row_bytes, width, *vector, _as_word(gain, eps)),
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


def _no_row(position: int) -> IndexError:
    return IndexError(f"token id at position {position} has no row")


def _run(kernel: Callable[..., int], fixed: tuple[int, ...], positions: int, width: int) -> None:
    """All positions, by as many threads as PyTorch has."""

    def some(start: int, stop: int) -> None:
        wrong = kernel(*fixed, start, stop)
        if wrong >= 0:
            raise _no_row(wrong)

    divide([(positions, max(1, LEAST // width), some)], torch.get_num_threads())
