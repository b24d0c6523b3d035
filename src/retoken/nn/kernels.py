"""What a modulator computes with: an object each has from its construction, exchanged by `use_kernels`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any, Protocol

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
    """For a compiler that fuses what it sees: no sort and no product between its loops. Inference only."""

    name = "traced"

    def route(self, hidden: Tensor, router: Tensor, top_k: int) -> Routing:
        """Who is best by counting who is better; of equals the first is (Eq. 3).

        Modulators are written out, so that one loop over the state makes all logits, and what follows is
        done for many positions at a time.
        """
        wide = widen(hidden)
        logits = [(wide * row_D).sum(-1) for row_D in widen(router).unbind()]
        each = range(len(logits))
        ranks, sigmas = [_rank(logits, own) for own in each], [torch.sigmoid(logit) for logit in logits]
        # Logits that are no numbers share a rank: what that sums up to must not lead out of a table.
        chosen = [_of_rank(k, ranks, each).clamp(max=each[-1]) for k in range(top_k)]
        kept = [_of_rank(k, ranks, sigmas) for k in range(top_k)]
        total = _sum(kept)
        weights = [one / total for one in kept]
        return Routing(*(torch.stack(x).movedim(0, -1) for x in (logits, chosen, weights)))


def _rank(logits: list[Tensor], own: int) -> Tensor:
    """How many modulators come before this one."""
    better = [other >= logits[own] for other in logits[:own]]
    better += [other > logits[own] for other in logits[own + 1 :]]
    return _sum([torch.zeros_like(logits[own], dtype=torch.int32), *better])


def _of_rank(rank: int, ranks: list[Tensor], values: Sequence[Any]) -> Tensor:
    """What the modulator of this rank has."""
    return _sum([torch.where(own == rank, value, 0) for own, value in zip(ranks, values, strict=True)])


def _sum(values: list[Tensor]) -> Tensor:
    return functools.reduce(operator.add, values)


OPERATORS = Operators()
"""What modulators have until something else is asked for."""
TRACED = Traced()
