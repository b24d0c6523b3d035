"""Runs drawn from planted constants: what fits are tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from retoken.scaling.gamma import Gain
from retoken.scaling.laws import PAPER_COST, Cost, Law
from retoken.scaling.runs import BASELINE, Runs, from_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """Of log loss."""

    run: float = 0.003
    """Standard deviation of each run's own."""
    pair: float = 0.003
    """Of what the runs of one size, budget and seed share: backbone start and data order."""
    seed: float = 0.0
    """Of what all runs of a seed share: no bootstrap over a few seeds can see it."""
    outliers: float = 0.0
    """Share of runs that lie ten times as far off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """Which runs there are."""

    budgets: Sequence[float]
    """FLOPs."""
    spans: Sequence[float]
    """Sizes of a budget, as multiples of its optimum."""
    seeds: int = 3
    attached: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    """(eta, rho) of each variant, trained at `attached_spans`."""
    attached_spans: Sequence[float] = (1.0,)
    """Multiples of the optimum that variants are trained at."""
    cost: Cost = PAPER_COST


def draw(law: Law, gains: Mapping[str, Gain], design: Design, noise: Noise, seed: int) -> Runs:
    """Runs of a design with the law's losses, noise added.

    Args:
        law: Planted, with float fields.
        gains: Planted, one a variant of the design.
        design: Which runs.
        noise: Of log loss.
        seed: Of the noise; the same one gives the same runs.
    """
    rng = np.random.default_rng(seed)
    whole, rows = noise.seed * rng.standard_normal(design.seeds), []
    for budget in design.budgets:
        best = float(law.optimal_params(budget, design.cost))
        for span in sorted({*design.spans, *(design.attached_spans if design.attached else ())}):
            for number in range(design.seeds):
                shared = whole[number] + noise.pair * rng.standard_normal()
                for variant, eta, rho in _settings(design, span):
                    factor = gains[variant].factor(eta, rho) if eta else 1.0
                    size = best * span
                    row = _row(law, design, budget, size, variant, eta, rho, float(factor), number)
                    rows.append(row | {"shared": shared})
    losses = np.array([row["loss"] for row in rows])
    own = noise.run * rng.standard_normal(losses.size)
    own *= np.where(rng.random(losses.size) < noise.outliers, 10.0, 1.0)
    noisy = losses * np.exp(own + np.array([row["shared"] for row in rows]))
    return from_rows({**row, "loss": float(loss)} for row, loss in zip(rows, noisy, strict=True))


def _settings(design: Design, span: float) -> list[tuple[str, float, float]]:
    found = [(BASELINE, 0.0, 0.0)] if span in design.spans else []
    if span in design.attached_spans:
        found += [(variant, eta, rho) for variant, pairs in design.attached.items() for eta, rho in pairs]
    return found


def _row(
    law: Law, design: Design, budget: float, size: float, variant: str, eta: float, rho: float,
    factor: float, seed: int,
) -> dict[str, float | str]:  # fmt: skip
    tokens = float(design.cost.tokens(budget, size))
    return {
        "variant": variant,
        "backbone": "synthetic",
        "budget": budget,
        "compute_params": size,
        "table_params": eta * size,
        "stored_params": (1 + eta) * size,
        "eta": eta,
        "rho": rho,
        "tokens": tokens,
        "flops": budget,
        "seed": seed,
        "loss": float(law.with_factor(factor).loss(size, tokens)),
        "seconds": float("nan"),
    }
