"""The compute-optimal frontier and what tables do to it (Eq. 10-15), closed and by search."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from retoken.scaling.laws import PAPER_COST, Cost, Law, Number


def searched(law: Law, C: float, cost: Cost = PAPER_COST) -> tuple[float, float]:
    """(N_c*, L*) at C FLOPs by search: the check on `optimal_params` and `optimal_loss` (Eq. 10).

    Args:
        law: With float fields.
        C: FLOPs.
        cost: What a token costs.
    """

    def loss(log_n: float) -> float:
        N = np.exp(log_n)
        return float(law.log_loss(N, cost.tokens(C, N)))

    widest = np.log(C / cost.scale) / cost.power
    grid = np.linspace(0, widest, 400)
    best = int(np.argmin([loss(x) for x in grid]))
    ends = grid[max(best - 1, 0)], grid[min(best + 1, grid.size - 1)]
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-11})
    return float(np.exp(found.x)), float(np.exp(found.fun))  # pyright: ignore[reportAttributeAccessIssue]


def shift(law: Law, factor: Number, C: Number, cost: Cost = PAPER_COST) -> Number:
    """g: the frontier with N_eff = factor * N_c over the frontier without, N_c chosen anew (Eq. 13).

    Independent of C in Kaplan's form; nearer to 1 at larger C in Chinchilla's.
    """
    return law.with_factor(factor).optimal_loss(C, cost) / law.optimal_loss(C, cost)


def attached_shift(law: Law, factor: Number, C: Number, cost: Cost = PAPER_COST) -> Number:
    """The same with N_c and D kept at the baseline's optimum, as the paper trains (stage 2 of Sec. 4.3.1).

    Equal to `shift` in the first order of log(factor) and above it in the second: what is measured in this
    way understates what the law promises to who chooses N_c anew.
    """
    N = law.optimal_params(C, cost)
    D = cost.tokens(C, N)
    return law.with_factor(factor).loss(N, D) / law.loss(N, D)


def compute_ratio(law: Law, factor: Number, C: Number, cost: Cost = PAPER_COST) -> Number:
    """Baseline's C over the C with which tables reach the same loss: 1 + gamma eta (Eq. 14).

    To the power `cost.power` where a token does not cost in proportion to N_c.
    """
    return C / law.with_factor(factor).compute_for(law.optimal_loss(C, cost), cost)


def factor_of_ratio(ratio: Number, exponent: float) -> Number:
    """1 + gamma eta that moves a frontier of this exponent down to `ratio` of its loss (Eq. 13 solved)."""
    return ratio ** (-1 / exponent)
