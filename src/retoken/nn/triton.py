"""Modulators on the Triton kernels: rows are read where they lie, once, by what writes the increment.

The kernels read rows of the increment's own device. Rows elsewhere, mixtures that other processes made, and
folded gates that a gradient has to go through are left to the plain operators.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retoken.nn.kernels import OPERATORS, Kernels
from retoken.nn.landing import Landing, Residual
from retoken.nn.table import Fetched, Rows
from retoken.ops import Routing, residual
from retoken.ops.fused import Near
from retoken.ops.triton import folded_gate_rows, folded_row_into, gate_rows, mix_rows_into, route_tokens
from retoken.ops.triton.route import MAX_MODULATORS


class GatheredMixture(NamedTuple):
    """A residual whose rows are gathered where it lands, by the kernel that adds it to the increment."""

    rows: Rows
    """[R, E, D], and which of them each position has."""
    chosen: Tensor
    """[..., K] int64."""
    weights: Tensor
    """[..., K]."""
    scale: Tensor | None
    """[D]; None: folded rows, K = 1."""
    gain: float
    eps: float

    @property
    def requires_grad(self) -> bool:
        """Whether there is a gradient path through it."""
        return any(x is not None and x.requires_grad for x in (self.rows.rows, self.weights, self.scale))

    @torch.compiler.disable
    def add_to(self, increment: Tensor) -> Tensor:
        """increment + residual (Eq. 6)."""
        if increment.device != self.rows.rows.device or (self.scale is None and _wants(self.rows.rows)):
            return Residual(self.tensor()).add_to(increment)
        flat, table, ids = increment.flatten(0, -2), self.rows.rows, self.rows.positions.flatten()
        chosen = self.chosen.flatten(0, -2)
        if self.scale is None:
            return folded_row_into(flat, table, ids, chosen.squeeze(-1)).view(increment.shape)
        weights = self.weights.flatten(0, -2)
        out = mix_rows_into(flat, table, ids, chosen, weights, self.scale, self.gain, self.eps)
        return out.view(increment.shape)

    def tensor(self) -> Tensor:
        """The residual itself, by the plain operators."""
        mixed = self.rows.mix(self.chosen, self.weights).to(self.weights.device)
        return mixed if self.scale is None else residual(mixed, self.scale, self.gain, self.eps)


class TritonKernels:
    """The kernels of `ops.triton`, forward and backward; `torch.compile` breaks its graph around them."""

    name = "triton"

    def near(self, rows: Fetched, *parameters: Tensor | None) -> Near | None:
        """Nothing is read by the CPU's passes."""

    @torch.compiler.disable
    def gate(self, increment: Tensor, rows: Fetched, scale: Tensor | None, gain: float, eps: float) -> Tensor:
        """Rows are gathered by the kernel that gates."""
        here = rows.resident()
        if here is None or here.rows.device != increment.device:
            return OPERATORS.gate(increment, rows, scale, gain, eps)
        flat, ids = increment.flatten(0, -2), here.positions.flatten()
        if scale is not None:
            return gate_rows(flat, here.rows, ids, scale, gain, eps).view(increment.shape)
        if _wants(increment) or _wants(here.rows):
            return OPERATORS.gate(increment, here, scale, gain, eps)
        return folded_gate_rows(flat, here.rows, ids).view(increment.shape)

    def route(self, hidden: Tensor, router: Tensor, top_k: int) -> Routing:
        """In one kernel, where no gradient is asked for."""
        if _wants(hidden) or _wants(router) or len(router) > MAX_MODULATORS or hidden.device != router.device:
            return OPERATORS.route(hidden, router, top_k)
        return _route(hidden, router, top_k)  # pyright: ignore

    @torch.compiler.disable
    def residual(
        self, rows: Fetched, routing: Routing, scale: Tensor | None, gain: float, eps: float
    ) -> Landing:
        """It is computed where it lands."""
        found = rows.resident_for(routing.chosen_TK)
        if found is None:
            return OPERATORS.residual(rows, routing, scale, gain, eps)
        return GatheredMixture(*found, routing.weights_TK, scale, gain, eps)  # pyright: ignore


TRITON: Kernels = TritonKernels()  # pyright: ignore


@torch.compiler.disable
def _route(hidden: Tensor, router: Tensor, top_k: int) -> Routing:
    found = route_tokens(hidden.flatten(0, -2), router, top_k)
    return Routing(*(x.unflatten(0, hidden.shape[:-1]) for x in found))


def _wants(x: Tensor) -> bool:
    """Whether a gradient is to reach it: folded rows give none."""
    return torch.is_grad_enabled() and x.requires_grad
