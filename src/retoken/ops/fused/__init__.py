"""The layers' arithmetic on rows where they lie, for inference on a CPU: gather and compute in one pass.

`near` says whether it can serve; the plain operators of `retoken.ops` serve everything else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retoken.ops.route import Routing

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.float8_e4m3fn: 3}
"""What the kernels are told of a type."""
SIZES = {number: kind.itemsize for kind, number in KINDS.items()}
"""Bytes of a number of a kind."""
WIDE = (torch.float32, torch.bfloat16)
"""Types of states, scales and routers that are served."""
PLAIN = (Tensor, torch.nn.Parameter)
"""Tensors that are what they seem."""
LEAST = 1 << 19
"""Numbers of a state that are worth a thread's call."""


class Near(NamedTuple):
    """Rows in this process's memory, and which of them each position has."""

    base: int
    """Where record 0 has this layer's first row, an address."""
    stride: int
    """Bytes from a record to the next."""
    limit: int
    """How many records there are."""
    slots: Tensor
    """[T] int64, contiguous: each position's record."""
    kind: int
    """Of KINDS."""
    row_bytes: int
    """From one row of a token to its next."""
    scales: int
    """Bytes from the first row to the layer's first float32 scale; 0: rows have none."""
    keep: Any
    """Whatever the memory belongs to."""
    ask: Callable[[Tensor], None] | None = None
    """Where rows may be on disk: asks for those that were chosen, [..., K]."""


def serves(*states: Tensor) -> bool:
    """Whether the kernels can serve: plain CPU tensors of a type they know, and no gradient is asked for."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return all(type(x) in PLAIN and x.is_cpu and x.dtype in WIDE for x in states)


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


def gate(near: Near, increment: Tensor, scale: Tensor | None, gain: float, eps: float) -> Tensor:
    """increment * (1 + scale * Norm(row)), [..., D] in the increment's type (Eq. 1-2).

    Args:
        near: one row a position.
        increment: [..., D], float32 or bfloat16.
        scale: [D]; None: the rows are folded and hold P - 1 (Eq. 8).
        gain, eps: of Norm, see `ops.normalize`.
    """
    kernel = kernels()
    increment = increment.contiguous()
    _check(near, increment)
    out, width = torch.empty_like(increment), increment.shape[-1]
    address, kind = _vector(scale)
    fixed = (
        *(near.base, near.slots.data_ptr(), near.stride, near.limit, near.kind, near.scales, width),
        *(increment.data_ptr(), KINDS[increment.dtype], out.data_ptr(), address, kind, gain, eps),
    )
    _run(kernel.gate, fixed, near.slots.numel(), width)
    return out


def mix_into(
    near: Near, increment: Tensor, routing: Routing, scale: Tensor | None, gain: float, eps: float
) -> Tensor:
    """increment + scale * Norm(sum_k w_k row_k), [..., D] in the increment's type (Eq. 4-6).

    Args:
        near: E rows a position.
        increment: [..., D], float32 or bfloat16.
        routing: the choice for the same positions.
        scale: [D]; None: the mixture is added as it is (folded with K = 1).
        gain, eps: of Norm, with 1 / sqrt(2 N_l) in the gain.
    """
    kernel = kernels()
    increment = increment.contiguous()
    _check(near, increment)
    out, width = torch.empty_like(increment), increment.shape[-1]
    address, kind = _vector(scale)
    chosen, weights = routing.chosen_TK, routing.weights_TK
    fixed = (
        *(
            near.base,
            near.slots.data_ptr(),
            near.stride,
            near.limit,
            near.kind,
            near.scales,
            near.row_bytes,
            width,
        ),
        *(chosen.data_ptr(), weights.data_ptr(), chosen.shape[-1]),
        *(increment.data_ptr(), KINDS[increment.dtype], out.data_ptr(), address, kind, gain, eps),
    )

    def mix(*where: Any) -> int:
        mixed = torch.empty(width)
        return kernel.mix(*where[:-2], mixed.data_ptr(), *where[-2:])

    _run(mix, fixed, near.slots.numel(), width)
    return out


def route(hidden: Tensor, router: Tensor, top_k: int) -> Routing:
    """`ops.route`: hidden [..., D], router [E, D]; logits in float32, added up in another order."""
    kernel = kernels()
    hidden, router = hidden.contiguous(), router.contiguous()
    before, width, experts = hidden.shape[:-1], hidden.shape[-1], router.shape[0]
    logits = torch.empty((*before, experts), dtype=torch.float32)
    chosen = torch.empty((*before, top_k), dtype=torch.int64)
    weights = torch.empty((*before, top_k), dtype=torch.float32)
    fixed = (
        *(hidden.data_ptr(), KINDS[hidden.dtype], router.data_ptr(), KINDS[router.dtype]),
        *(width, experts, top_k, logits.data_ptr(), chosen.data_ptr(), weights.data_ptr()),
    )
    _run(kernel.route, fixed, hidden.numel() // max(width, 1), width)
    return Routing(logits, chosen, weights)


def _check(near: Near, increment: Tensor) -> None:
    """Refuse states that the rows are not for: a kernel would read and write beyond their ends."""
    width = increment.shape[-1]
    if increment.numel() != near.slots.numel() * width or near.row_bytes != width * SIZES[near.kind]:
        raise ValueError(
            f"increments {tuple(increment.shape)} with rows of {near.row_bytes // SIZES[near.kind]} numbers "
            f"for {near.slots.numel()} positions; accepted: [..., D] for as many positions"
        )


@functools.cache
def kernels() -> Any:
    """Compiled when first used: importing numba takes a second."""
    from retoken.ops.fused import kernel

    return kernel


def _vector(scale: Tensor | None) -> tuple[int, int]:
    return (0, 0) if scale is None else (scale.data_ptr(), KINDS[scale.dtype])


def _run(kernel: Any, fixed: tuple[Any, ...], positions: int, width: int) -> None:
    """All positions, by as many threads as PyTorch has where there is enough to do."""

    def some(start: int, stop: int) -> None:
        wrong = kernel(*fixed, start, stop)
        if wrong >= 0:
            raise IndexError(f"token id at position {wrong} has no row")

    if positions * width < 2 * LEAST:
        some(0, positions)
        return
    from retoken.ops.row_update.threads import divide

    divide([(positions, max(1, LEAST // width), some)], torch.get_num_threads())
