"""Loss against log2 eta at one N_c, D and rho: JTok's log-linear law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retoken.errors import DataError
from retoken.scaling.laws import Number
from retoken.scaling.runs import Runs, different


@dataclass(frozen=True, kw_only=True, slots=True)
class EtaLaw:
    """L = intercept + per_doubling log2(eta)."""

    intercept: float
    """Nats a token at eta 1."""
    per_doubling: float
    """Nats a token that a doubling of eta adds; negative where tables help."""
    r_squared: float | None
    """Share of variance; None with two points, where it says nothing."""

    def loss(self, eta: Number) -> Number:
        """Nats a token."""
        return self.intercept + self.per_doubling * np.log2(eta)


def fit_eta_law(eta: Number, loss: Number) -> EtaLaw:
    """Least squares of loss ``[R]`` on log2 eta ``[R]``.

    Raises:
        DataError: fewer than two different eta.
    """
    x, y = np.log2(np.asarray(eta, dtype=np.float64)), np.asarray(loss, dtype=np.float64)
    if np.unique(x).size < 2:
        raise DataError(f"{np.unique(x).size} different eta for a law of eta; accepted: at least 2")
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    rest = y - y.mean() - slope * (x - x.mean())
    total = float(((y - y.mean()) ** 2).sum())
    share = 1 - float((rest**2).sum()) / total if y.size > 2 and total > 0 else None
    return EtaLaw(intercept=float(y.mean() - slope * x.mean()), per_doubling=slope, r_squared=share)


def eta_laws(runs: Runs, variant: str) -> dict[tuple[float, float], EtaLaw]:
    """The law at each (N_c, tokens) where a variant has two eta or more, rho the largest there.

    Args:
        runs: Of one backbone.
        variant: Which.
    """
    ours = runs.of_variant(variant)
    found = {}
    for size, tokens in sorted(set(zip(ours.compute_params, ours.tokens, strict=True))):
        here = ours.pick((ours.compute_params == size) & (ours.tokens == tokens))
        here = here.pick(here.rho >= here.rho.max() - 1e-9)
        if different(here.eta) > 1:
            found[float(size), float(tokens)] = fit_eta_law(here.eta, here.loss)
    return found
