"""Rows where they lie, as the kernels are told of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float8_e4m3fn: 3}
"""What the kernels are told of a type."""
SIZES = {number: kind.itemsize for kind, number in KINDS.items()}
"""Bytes of a number of a kind."""
STATES = {kind: KINDS[kind] for kind in (torch.float32, torch.bfloat16)}
"""The kinds that states, scales and routers may have."""
PLAIN = (Tensor, torch.nn.Parameter)
"""Tensors that are what they seem."""


class Near(NamedTuple):
    """Rows in this process's memory, and which of them each position has."""

    base: int
    """Where record 0 has this layer's first row, an address."""
    stride: int
    """Bytes from a record to the next."""
    limit: int
    """How many records there are."""
    slots: Tensor
    """[T] int64, contiguous: each position's record; [T * heads] where several are summed."""
    kind: int
    """Of KINDS."""
    row_bytes: int
    """From one row of a token to its next."""
    scales: int
    """Bytes from the first row to the layer's first float32 scale; 0: rows have none."""
    keep: Any
    """Whatever the memory belongs to."""
    ask: Callable[[Near, Tensor, Tensor], None] | None = None
    """Where rows may be on disk: asks, of records like `slots`, for the rows that were chosen, [..., K]."""
    heads: int = 1
    """H: records a position."""


class Places(NamedTuple):
    """The records of a pass's positions, once for all layers."""

    slots: Tensor
    """As `Near` has them."""
    address: int
    """Of the first."""
    count: int
    """How many."""

    @classmethod
    def of(cls, ids: Tensor) -> Places:
        """Of records that are found by ids [...]."""
        slots = _flat(ids)
        return cls(slots, slots.data_ptr(), slots.numel())


NOWHERE = Places(torch.empty(0, dtype=torch.int64), 0, 0)
"""Where no rows are read."""


def kind_of(states: Tensor) -> int | None:
    """Of STATES; None: not plain tensors of such a type on a CPU, so no kernel may take them."""
    return STATES.get(states.dtype) if type(states) in PLAIN and states.is_cpu else None


def serves(*states: Tensor) -> bool:
    """Whether the kernels can serve: they know all of these, and no gradient is asked for."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return all(kind_of(x) is not None for x in states)


def near_table(weight: Tensor, ids: Tensor) -> Near | None:
    """The rows of a table [V, D] or [V, E, D] for ids [...]; None where the kernels cannot read it."""
    if weight.device.type != "cpu" or weight.dtype not in KINDS or not weight.is_contiguous():
        return None
    size = weight.element_size()
    stride, row_bytes = weight.stride(0) * size, weight.shape[-1] * size
    return Near(
        weight.data_ptr(), stride, weight.shape[0], _flat(ids), KINDS[weight.dtype], row_bytes, 0, weight
    )


def _flat(ids: Tensor) -> Tensor:
    return ids if ids.is_contiguous() and ids.dtype == torch.int64 else ids.to(torch.int64).contiguous()
