"""The isocompute parabola (Hoffmann et al. 2022, approach 2): each budget's best size from its own U, then a
power law through the best. What the joint fit of a law stands beside.

It is simple and it is biased: the U of either law is not a parabola in log N_c, so that the minimum moves
with the sizes that were run, and with it the exponents. `studies/scaling/parabola.py` shows by how much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retoken.errors import DataError
from retoken.scaling.laws import PAPER_COST, Array, Cost, Number
from retoken.scaling.runs import BASELINE, Runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Nadir:
    """A parabola's lowest point."""

    budget: float
    """FLOPs."""
    params: float
    """N_c*; NaN where the parabola has no minimum."""
    tokens: float
    """D* that the budget pays for."""
    loss: float
    """Nats a token."""
    sizes: int
    """Different N_c it was drawn through."""
    inside: bool
    """Whether N_c* lies among the sizes that were run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Isocompute:
    """Power laws through the lowest points."""

    nadirs: tuple[Nadir, ...]
    params_power: tuple[float, float]
    """(scale, exponent) of N_c* = scale C^exponent."""
    loss_power: tuple[float, float]
    """(scale, exponent) of L* = scale C^-exponent."""

    def optimal_params(self, C: Number) -> Number:
        """N_c* at C FLOPs."""
        return self.params_power[0] * C ** self.params_power[1]

    def optimal_loss(self, C: Number) -> Number:
        """L* at C FLOPs, nats a token."""
        return self.loss_power[0] * C ** -self.loss_power[1]


def nadir(budget: float, sizes: Array, losses: Array, cost: Cost = PAPER_COST) -> Nadir:
    """The lowest point of the parabola of loss ``[R]`` in log N_c ``[R]`` through one budget's runs.

    Raises:
        DataError: fewer than three sizes.
    """
    x = np.log(sizes)
    count = np.unique(sizes).size
    if count < 3:
        raise DataError(
            f"budget {budget:.3g} has {count} sizes of the baseline; accepted: from 3 for a parabola"
        )
    middle = x.mean()
    bend, slope, level = np.polyfit(x - middle, losses, 2)
    best = middle - slope / (2 * bend) if bend > 0 else float("nan")
    params = float(np.exp(best))
    loss = float(level - slope**2 / (4 * bend)) if bend > 0 else float("nan")
    inside = bool(x.min() <= best <= x.max())
    tokens = float(cost.tokens(budget, params))
    return Nadir(budget=budget, params=params, tokens=tokens, loss=loss, sizes=count, inside=inside)


def isocompute(runs: Runs, cost: Cost = PAPER_COST) -> Isocompute:
    """Parabolas through the baseline's runs, budget by budget, and power laws through their lowest points.

    A parabola without a minimum takes no part in the power laws.

    Raises:
        DataError: fewer than three sizes at a budget, or fewer than two budgets with a minimum.
    """
    base = runs.of_variant(BASELINE)
    found = []
    for budget in base.budgets:
        ours = base.pick(base.budget == budget)
        found.append(nadir(float(budget), ours.compute_params, ours.loss, cost))
    good = [each for each in found if np.isfinite(each.params) and each.loss > 0]
    if len(good) < 2:
        raise DataError(f"{len(good)} budgets whose parabola has a minimum; accepted: from 2 for a power law")
    budgets = np.array([each.budget for each in good])
    sizes, losses = (np.array([getattr(each, name) for each in good]) for name in ("params", "loss"))
    scale, power = _power_law(budgets, sizes)
    loss_scale, loss_power = _power_law(budgets, losses)
    return Isocompute(nadirs=tuple(found), params_power=(scale, power), loss_power=(loss_scale, -loss_power))


def _power_law(x: Array, y: Array) -> tuple[float, float]:
    power, level = np.polyfit(np.log(x), np.log(y), 1)
    return float(np.exp(level)), float(power)
