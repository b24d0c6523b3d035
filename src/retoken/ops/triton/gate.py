"""ReToken's gate on an MLP increment, straight from the table (Eq. 1-2), and its folded form (Eq. 8)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retoken.ops.triton import launch
from retoken.ops.triton.launch import FLOATS, INTEGERS


def gate_rows(
    increment_TD: Tensor, table_VD: Tensor, ids_T: Tensor, scale_D: Tensor, gain: float, eps: float
) -> Tensor:
    """increment * (1 + scale * gain * row / (||row||_2 + eps)), [T, D] in the increment's dtype (Eq. 1-2).

    Arithmetic is float32, rounded once; each row is read once. The table's gradient is dense, [V, D]: the
    gradients of the tokens' rows, float32, summed by id and rounded once to the table's dtype. For a
    gradient of touched rows only, pass those rows as the table and positions among them as the ids
    (`nn.table.Rows`). The scale's gradient is summed in an order that T alone decides, without atomics.
    A zero row is neutral, and its gradient is gain / eps times that of the normalised row, as in
    `ops.gate`.

    Args:
        increment_TD: [T, D], the MLP's increment; float32, bfloat16 or float16, as the table and the scale.
        table_VD: [V, D], the rows; any stride between rows, the last stride 1.
        ids_T: [T], int64 or int32, within 0 to V - 1: not checked.
        scale_D: [D].
        gain, eps: of Norm, see `ops.norm.normalize`; eps above 0.

    Raises:
        ValueError: a shape, type or device does not fit, or D is above 8192.
        ImportError: Triton is not installed.
    """
    _check(increment_TD, table_VD, ids_T)
    launch.check("scale", scale_D, (increment_TD.shape[1],), FLOATS)
    return _GateRows.apply(increment_TD, table_VD, ids_T, scale_D, gain, eps)  # pyright: ignore


def folded_gate_rows(increment_TD: Tensor, table_VD: Tensor, ids_T: Tensor) -> Tensor:
    """increment * (1 + row), [T, D] in the increment's dtype: the table holds P - 1 (Eq. 8). Inference only.

    Args:
        increment_TD, table_VD, ids_T: as for `gate_rows`.

    Raises:
        ValueError: a shape, type or device does not fit, D is above 8192, or a gradient would be lost.
        ImportError: Triton is not installed.
    """
    _check(increment_TD, table_VD, ids_T)
    if torch.is_grad_enabled() and (increment_TD.requires_grad or table_VD.requires_grad):
        raise ValueError("folded_gate_rows has no backward: call it under torch.no_grad()")
    kernel = launch.kernels("gate_kernels").folded_forward
    increment, ids = increment_TD.contiguous(), ids_T.contiguous()
    out = torch.empty_like(increment)
    with launch.on_device(kernel, increment, table_VD, ids):
        if len(ids):
            kernel[(len(ids),)](
                out, increment, table_VD, ids, table_VD.stride(0), **launch.sizes(increment.shape[1])
            )
    return out


def _check(increment_TD: Tensor, table_VD: Tensor, ids_T: Tensor) -> None:
    """The arguments both gates share."""
    launch.check("increment", increment_TD, (None, None), FLOATS)
    tokens, width = increment_TD.shape
    launch.check_width(width)
    launch.check("table", table_VD, (None, width), FLOATS)
    launch.check_table(table_VD)
    launch.check("ids", ids_T, (tokens,), INTEGERS)


class _Inputs(NamedTuple):
    """The tensors both passes read, in the kernels' order."""

    increment: Tensor
    table: Tensor
    ids: Tensor
    scale: Tensor


class _GateRows(torch.autograd.Function):
    """`gate_rows` with its gradients."""

    @staticmethod
    def forward(ctx: Any, increment_TD: Tensor, table_VD: Tensor, *rest: Any) -> Tensor:
        ids_T, scale_D, ctx.gain, ctx.eps = rest
        inputs = _Inputs(increment_TD.contiguous(), table_VD, ids_T.contiguous(), scale_D.contiguous())
        ctx.save_for_backward(*inputs)
        return _forward(inputs, ctx.gain, ctx.eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _Inputs(*ctx.saved_tensors)
        increment, rows, partial = _backward(grad_TD.contiguous(), inputs, ctx.gain, ctx.eps)
        table = None
        if ctx.needs_input_grad[1]:
            table = launch.sum_by_row(rows, inputs.ids, len(inputs.table)).to(inputs.table.dtype)
        return increment, table, None, partial.sum(0).to(inputs.scale.dtype), None, None


def _forward(inputs: _Inputs, gain: float, eps: float) -> Tensor:
    """The gated increment, [T, D]: one program a token."""
    out, tokens = torch.empty_like(inputs.increment), len(inputs.ids)
    kernel = launch.kernels("gate_kernels").gate_forward
    numbers = (inputs.table.stride(0), float(gain), float(eps))
    with launch.on_device(kernel, *inputs):
        if tokens:
            kernel[(tokens,)](out, *inputs, *numbers, **launch.sizes(out.shape[1]))
    return out


def _backward(grad_out: Tensor, inputs: _Inputs, gain: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the increment [T, D] and of each token's row [T, D] float32, and the scale's in parts."""
    tokens, width = grad_out.shape
    kernel = launch.kernels("gate_kernels").gate_backward
    per_program = launch.tokens_per_program(tokens)
    programs = -(-tokens // per_program)
    increment = torch.empty_like(inputs.increment)
    rows = torch.empty(tokens, width, dtype=torch.float32, device=grad_out.device)
    partial = torch.empty(programs, width, dtype=torch.float32, device=grad_out.device)
    numbers = (inputs.table.stride(0), float(gain), float(eps), tokens, per_program)
    with launch.on_device(kernel, grad_out, *inputs):
        if tokens:
            kernel[(programs,)](increment, rows, partial, grad_out, *inputs, *numbers, **launch.sizes(width))
    return increment, rows, partial
