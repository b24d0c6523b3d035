"""Which tokens' rows matter: estimates from gradients, and a check of them by really zeroing some rows.

A switch a multiplies what the rows of a position add: increment + a * (gated increment - increment) for
ReToken, a * residual for MoRT. At a = 1 the model is as it was, at a = 0 it has zero rows. The first-order
estimate of what a token's rows are worth is -dL/da at a = 1, summed over its positions. (The gradient by the
rows themselves would not tell: Norm cancels it along a row.) But training has moved the scales to where
these derivatives sum to nearly zero, so it tells little of the whole way to a = 0. The estimate along the
path averages the derivative over a with Simpson's rule, from a = 1, 1/2 and 0 of all rows at once, as
integrated gradients do (Sundararajan et al. 2017): the sum over all tokens is then about what all rows are
worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from retoken.inspect.subject import Subject
from retoken.nn.landing import Residual

SIMPSON = ((1.0, 1 / 6), (0.5, 4 / 6), (0.0, 1 / 6))
"""(a, weight of the derivative there)."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What zeroing tokens' rows is estimated to cost, on the text that was looked at; sums in nats."""

    first_LV: Tensor
    """[L, V] float64: by layer and token, to first order."""
    path_LV: Tensor
    """[L, V] float64: the same along the path."""
    square_V: Tensor
    """[V] float64: sum over a token's positions of the squared cost of a position along the path."""
    count_V: Tensor
    """[V] int64: positions."""

    @property
    def first_V(self) -> Tensor:
        """All layers together."""
        return self.first_LV.sum(0)

    @property
    def path_V(self) -> Tensor:
        """All layers together."""
        return self.path_LV.sum(0)

    def shrunk_V(self) -> Tensor:
        """[V] cost a position along the path: each token's mean drawn towards that of all.

        The mean of a token seen n times weighs n / (n + k). k is the variance within tokens over that between
        them, estimated from these very positions (one-way random effects): chance alone then makes no token
        that was seen once or twice look important, and one never seen is taken for an average one.
        """
        n, mean = self.count_V.double(), self.path_V.sum() / self.count_V.sum()
        k = variance_ratio(n, self.path_V, self.square_V)
        if k == float("inf"):
            return mean.expand(len(n)).clone()
        return torch.where(n + k > 0, (self.path_V + k * mean) / (n + k), mean)


def variance_ratio(n_V: Tensor, sum_V: Tensor, square_V: Tensor) -> float:
    """Variance within groups over that between them; inf where groups do not differ beyond chance.

    Args:
        n_V: values of each group.
        sum_V, square_V: their sum and the sum of their squares.
    """
    seen = n_V > 0
    n, total, square = n_V[seen], sum_V[seen], square_V[seen]
    groups, count = len(n), n.sum()
    if groups < 2 or count <= groups:
        return float("inf")
    within = (square.sum() - (total**2 / n).sum()) / (count - groups)
    spread = (n * (total / n - total.sum() / count) ** 2).sum()
    between = (spread - (groups - 1) * within) / (count - (n**2).sum() / count)
    return (within.clamp_min(0) / between).item() if between > 0 else float("inf")


def estimate(subject: Subject) -> Estimate:
    """Three forward and backward passes over the windows to look with; the model is left as it was."""
    ids_T = subject.looked_NW[:, :-1].flatten()
    first_LT, path_LT = None, torch.zeros(())
    for amount, weight in SIMPSON:
        cost_LT = _costs(subject, amount)
        first_LT = cost_LT if first_LT is None else first_LT
        path_LT = path_LT + weight * cost_LT
    assert first_LT is not None
    empty = torch.zeros(len(subject.modulators), subject.vocab_size, dtype=torch.float64)
    return Estimate(
        first_LV=empty.index_add(1, ids_T, first_LT),
        path_LV=empty.index_add(1, ids_T, path_LT),
        square_V=empty[0].index_add(0, ids_T, path_LT.sum(0) ** 2),
        count_V=torch.bincount(ids_T, minlength=subject.vocab_size),
    )


def _costs(subject: Subject, amount: float) -> Tensor:
    """-dL/da by layer and position [L, T], float64 on the host, where all switches are at `amount`."""
    found: list[Tensor] = []
    with torch.enable_grad(), _switches(subject, amount) as switches:
        for _, nll in subject.passes(subject.looked_NW):
            gradients = torch.autograd.grad(nll.sum(), [switch.amount for switch in switches])
            found.append(-torch.stack([gradient.flatten() for gradient in gradients]).double().cpu())
    return torch.cat(found, 1)


class _Switch:
    """A hook on a modulator that multiplies what it adds at each position."""

    amount: Tensor
    """[B, S], of the last pass."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden: Tensor = args[0]
        self.amount = torch.full(hidden.shape[:-1], self.value, device=hidden.device, requires_grad=True)
        by_position = self.amount.unsqueeze(-1)
        if isinstance(output, Tensor):
            return hidden + by_position.to(hidden.dtype) * (output - hidden)
        residual, routing = output
        return Residual(by_position * residual.tensor()), routing


@contextmanager
def _switches(subject: Subject, value: float) -> Iterator[list[_Switch]]:
    switches = [_Switch(value) for _ in subject.modulators]
    pairs = zip(subject.modulators.values(), switches, strict=True)
    handles = [module.register_forward_hook(switch) for module, switch in pairs]
    try:
        yield switches
    finally:
        for handle in handles:
            handle.remove()
