"""What a modulator computes with: an object each has from its construction, exchanged by `use_kernels`."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from retoken.nn.landing import Landing, Residual
from retoken.nn.table import Fetched
from retoken.ops import Routing, fused, gate, residual, route
from retoken.ops.fused import Near
from retoken.ops.precision import widen


class Kernels(Protocol):
    """How rows get into an increment, with the gradients of all that has any."""

    name: str
    """What `use_kernels` calls them."""

    def near(self, rows: Fetched, *parameters: Tensor | None) -> Near | None:
        """Where rows lie, if a pass without gradients is to read them there by `ops.fused`."""
        ...

    def gate(self, increment: Tensor, rows: Fetched, scale: Tensor | None, gain: float, eps: float) -> Tensor:
        """The gated increment, [..., D] in the increment's dtype (Eq. 1-2).

        Args:
            increment: [..., D].
            rows: one a position.
            scale: [D]; None: the rows are folded and hold P - 1 (Eq. 8).
            gain, eps: of Norm, see `ops.normalize`.
        """
        ...

    def route(self, hidden: Tensor, router: Tensor, top_k: int) -> Routing:
        """The choice of `top_k` modulators for states [..., D], by a router [E, D] (Eq. 3)."""
        ...

    def residual(
        self, rows: Fetched, routing: Routing, scale: Tensor | None, gain: float, eps: float
    ) -> Landing:
        """What the mixture of the chosen rows adds where it lands, [..., D] (Eq. 4-6).

        Args:
            rows: E a position.
            routing: K of them, with their weights.
            scale: [D]; None: the rows are folded and K is 1, so the chosen row is the residual.
            gain, eps: of Norm, with 1 / sqrt(2 N_l) in the gain.
        """
        ...


class Operators:
    """The plain operators; without gradients on a CPU the compiled passes of `ops.fused`."""

    name = "eager"

    def near(self, rows: Fetched, *parameters: Tensor | None) -> Near | None:
        """Where they lie, if the compiled passes serve."""
        given = [x for x in parameters if x is not None]
        return rows.near() if fused.serves(*given) else None

    def gate(self, increment: Tensor, rows: Fetched, scale: Tensor | None, gain: float, eps: float) -> Tensor:
        """Rows are gathered, then the gate is computed."""
        looked_up = rows.lookup().to(increment.device)
        if scale is None:
            return (widen(increment) * (1 + widen(looked_up))).to(increment.dtype)
        return gate(increment, looked_up, scale, gain, eps)

    def route(self, hidden: Tensor, router: Tensor, top_k: int) -> Routing:
        """By a product and what follows it."""
        return route(hidden, router, top_k)

    def residual(
        self, rows: Fetched, routing: Routing, scale: Tensor | None, gain: float, eps: float
    ) -> Residual:
        """It is computed now."""
        mixed = rows.mix(routing.chosen_TK, routing.weights_TK).to(routing.weights_TK.device)
        return Residual(mixed if scale is None else residual(mixed, scale, gain, eps))


class Traced(Operators):
    """For a compiler that fuses what it sees: no sort and no product stand between its loops. Inference only.

    A choice has all E modulators, with weights of zero where the K best have others: so all rows are read.
    """

    name = "traced"

    def route(self, hidden: Tensor, router: Tensor, top_k: int) -> Routing:
        """Who is best by counting who is better; of equals the first is (Eq. 3)."""
        logits_TE = (widen(hidden).unsqueeze(-2) * widen(router)).sum(-1)
        each_E = torch.arange(router.shape[0], device=hidden.device)
        own, other = logits_TE.unsqueeze(-1), logits_TE.unsqueeze(-2)
        better = (other > own) | ((other == own) & (each_E < each_E.unsqueeze(-1)))
        sigma_TE = torch.sigmoid(logits_TE) * (better.sum(-1) < top_k)
        weights_TE = sigma_TE / sigma_TE.sum(-1, keepdim=True)
        return Routing(logits_TE, each_E.expand(logits_TE.shape), weights_TE)

    def residual(
        self, rows: Fetched, routing: Routing, scale: Tensor | None, gain: float, eps: float
    ) -> Residual:
        """Of all rows, which a loop reads one after the other."""
        mixed = (widen(rows.lookup()) * routing.weights_TK.unsqueeze(-1)).sum(-2)
        return Residual(mixed if scale is None else residual(mixed, scale, gain, eps))


OPERATORS = Operators()
"""What modulators have until something else is asked for."""
TRACED = Traced()
