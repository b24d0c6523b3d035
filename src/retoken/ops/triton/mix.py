"""MoRT's mixture of chosen rows, normalised, scaled and added to the increment (Eq. 4-6)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from retoken.ops.triton import launch
from retoken.ops.triton.launch import FLOATS, INTEGERS


def mix_rows_into(
    increment_TD: Tensor,
    table_VED: Tensor,
    ids_T: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    scale_D: Tensor,
    gain: float,
    eps: float,
) -> Tensor:
    """increment + scale * gain * e / (||e||_2 + eps), [T, D] in the increment's dtype (Eq. 4-6).

    e = sum_k weights_k * table[id, chosen_k]. Arithmetic is float32, rounded once; each chosen row is read
    once. The table's gradient is dense, [V, E, D]: the gradients of the chosen rows, float32, summed by id
    and modulator and rounded once to the table's dtype. For a gradient of touched tokens only, pass their
    rows as the table and positions among them as the ids (`nn.table.Rows`). The scale's gradient is summed
    in an order that T alone decides, without atomics. The increment's gradient is the output's.

    Args:
        increment_TD: [T, D], what the residual is added to; float32, bfloat16 or float16, as the table, the
            weights and the scale.
        table_VED: [V, E, D], the rows; any stride between them, the last stride 1.
        ids_T: [T], chosen_TK: [T, K]; int64 or int32, within 0 to V - 1 and 0 to E - 1: not checked.
        weights_TK: [T, K]; scale_D: [D].
        gain, eps: of Norm, see `ops.norm.normalize`; gain times 1 / sqrt(2 N_l), eps above 0.

    Raises:
        ValueError: a shape, type or device does not fit, or D is above 8192.
        ImportError: Triton is not installed.
    """
    width = _check(increment_TD, table_VED, ids_T)
    launch.check("chosen", chosen_TK, (len(ids_T), None), INTEGERS)
    if chosen_TK.shape[1] == 0:
        raise ValueError("chosen: no rows a token, at least 1 is expected")
    launch.check("weights", weights_TK, tuple(chosen_TK.shape), FLOATS)
    launch.check("scale", scale_D, (width,), FLOATS)
    return _MixRows.apply(increment_TD, table_VED, ids_T, chosen_TK, weights_TK, scale_D, gain, eps)  # pyright: ignore


def folded_row_into(increment_TD: Tensor, table_VED: Tensor, ids_T: Tensor, chosen_T: Tensor) -> Tensor:
    """increment + table[id, chosen], [T, D] in the increment's dtype: MoRT folded with K = 1 (Eq. 8).

    The gradient of the increment is the output's; folded rows have none.

    Args:
        increment_TD, table_VED, ids_T: as for `mix_rows_into`.
        chosen_T: [T], int64 or int32, within 0 to E - 1: not checked.

    Raises:
        ValueError: a shape, type or device does not fit, D is above 8192, or a gradient would be lost.
        ImportError: Triton is not installed.
    """
    width = _check(increment_TD, table_VED, ids_T)
    launch.check("chosen", chosen_T, (len(ids_T),), INTEGERS)
    if torch.is_grad_enabled() and table_VED.requires_grad:
        raise ValueError("folded_row_into gives rows no gradient: call it under torch.no_grad()")
    return _FoldedRow.apply(increment_TD, table_VED, ids_T, chosen_T, width)  # pyright: ignore


class _FoldedRow(torch.autograd.Function):
    """`folded_row_into` with the gradient of the increment."""

    @staticmethod
    def forward(
        ctx: Any, increment_TD: Tensor, table_VED: Tensor, ids_T: Tensor, chosen_T: Tensor, width: int
    ) -> Tensor:
        kernel = launch.kernels("mix_kernels").folded_add_forward
        increment, ids, chosen = (x.contiguous() for x in (increment_TD, ids_T, chosen_T))
        out, strides = torch.empty_like(increment), table_VED.stride()[:2]
        with launch.on_device(kernel, increment, table_VED, ids, chosen):
            if len(ids):
                kernel[(len(ids),)](out, increment, table_VED, ids, chosen, *strides, **launch.sizes(width))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None, None]:
        return grads[0], None, None, None, None


def _check(increment_TD: Tensor, table_VED: Tensor, ids_T: Tensor) -> int:
    """D; the arguments that both forms share."""
    launch.check("increment", increment_TD, (None, None), FLOATS)
    tokens, width = increment_TD.shape
    launch.check_width(width)
    launch.check("table", table_VED, (None, None, width), FLOATS)
    launch.check_table(table_VED)
    launch.check("ids", ids_T, (tokens,), INTEGERS)
    return width


class _Inputs(NamedTuple):
    """The tensors both passes read, in the kernels' order."""

    table: Tensor
    ids: Tensor
    chosen: Tensor
    weights: Tensor
    scale: Tensor

    def sizes(self) -> dict[str, int]:
        """The kernels' compile-time sizes and launch options."""
        return launch.sizes(self.table.shape[2], self.chosen.shape[1])


class _MixRows(torch.autograd.Function):
    """`mix_rows_into` with its gradients."""

    @staticmethod
    def forward(ctx: Any, increment_TD: Tensor, table_VED: Tensor, *rest: Any) -> Tensor:
        *tensors, ctx.gain, ctx.eps = rest
        inputs = _Inputs(table_VED, *(x.contiguous() for x in tensors))
        ctx.save_for_backward(*inputs)
        increment = increment_TD.contiguous()
        out = torch.empty_like(increment)
        _forward(out, increment, inputs, ctx.gain, ctx.eps)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:
        inputs = _Inputs(*ctx.saved_tensors)
        rows, weights, partial = _backward(grad_TD.contiguous(), inputs, ctx.gain, ctx.eps)
        table = _table_gradient(rows, inputs) if ctx.needs_input_grad[1] else None
        return (
            grad_TD,
            table,
            None,
            None,
            weights.to(inputs.weights.dtype),
            partial.sum(0).to(inputs.scale.dtype),
            None,
            None,
        )


def _forward(out: Tensor, increment: Tensor, inputs: _Inputs, gain: float, eps: float) -> None:
    """Fill `out` [T, D]: one program a token."""
    tokens = increment.shape[0]
    kernel = launch.kernels("mix_kernels").mix_forward
    strides = inputs.table.stride()[:2]
    with launch.on_device(kernel, increment, *inputs):
        if tokens:
            kernel[(tokens,)](out, increment, *inputs, *strides, float(gain), float(eps), **inputs.sizes())


def _backward(grad_out: Tensor, inputs: _Inputs, gain: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of each chosen row [T, K, D] and of the weights [T, K], and the scale's in parts; float32."""
    (tokens, width), top_k = grad_out.shape, inputs.chosen.shape[1]
    kernel = launch.kernels("mix_kernels").mix_backward
    per_program = launch.tokens_per_program(tokens)
    programs = -(-tokens // per_program)
    shapes = ((tokens, top_k, width), (tokens, top_k), (programs, width))
    grads = [torch.empty(shape, dtype=torch.float32, device=grad_out.device) for shape in shapes]
    strides = inputs.table.stride()[:2]
    numbers = (float(gain), float(eps), tokens, per_program)
    with launch.on_device(kernel, grad_out, *inputs):
        if tokens:
            kernel[(programs,)](*grads, grad_out, *inputs, *strides, *numbers, **inputs.sizes())
    return grads[0], grads[1], grads[2]


def _table_gradient(grad_TKD: Tensor, inputs: _Inputs) -> Tensor:
    """[V, E, D] in the table's dtype, from the gradients of the chosen rows."""
    vocab, per_token, width = inputs.table.shape
    index_TK = inputs.ids.long().unsqueeze(-1) * per_token + inputs.chosen
    summed = launch.sum_by_row(grad_TKD.flatten(0, 1), index_TK.flatten(), vocab * per_token)
    return summed.view(vocab, per_token, width).to(inputs.table.dtype)
