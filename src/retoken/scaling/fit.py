"""Fitting a law and its gains to runs: log loss, Huber's loss, many starts, analytic gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retoken.errors import DataError
from retoken.scaling.descend import descend
from retoken.scaling.gamma import Form, Gain
from retoken.scaling.laws import Array, Kaplan, Law
from retoken.scaling.problem import Problem, make_problem, usable
from retoken.scaling.runs import Runs
from retoken.scaling.starts import starts

_STARTS = 8
_HUBER = 1.345
"""Deltas in standard deviations: 95 % of least squares' efficiency on normal noise."""
_FIRST_DELTA = 1.0
_LEAST_DELTA = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fit:
    """A law fitted to runs."""

    runs: Runs
    """What it was fitted to."""
    problem: Problem
    z: Array
    """The point, ``[P]``."""
    delta: float
    """Huber's threshold on log loss."""
    noise: float
    """Standard deviation of a run's log loss about the law, robustly estimated."""
    settled: bool
    """Whether the descent came to rest."""
    other_minima: int
    """Starts that ended elsewhere than the best by more than the noise allows."""
    left_out: tuple[str, ...] = ()
    """Variants without tables that are not the baseline: neither the law nor a gain is theirs."""

    @property
    def law(self) -> Law:
        """The law's constants."""
        return self.problem.coordinates.law_at(self.z)

    @property
    def gains(self) -> dict[str, Gain]:
        """gamma of every variant with tables."""
        return self.problem.coordinates.gains_at(self.z)

    @property
    def predicted(self) -> Array:
        """Log losses ``[R]`` of the law at the runs."""
        return self.problem.evaluate(self.z[None])[0][0]

    @property
    def residuals(self) -> Array:
        """Measured less predicted log loss ``[R]``."""
        return self.problem.target - self.predicted

    @property
    def slope(self) -> Array:
        """Derivatives of predicted log losses ``[R, P]``."""
        return self.problem.evaluate(self.z[None])[1][0]

    @property
    def at_bounds(self) -> tuple[str, ...]:
        """Coordinates that ended at the edge of where they were sought."""
        return names_at_bounds(self.problem, self.z[None])


def names_at_bounds(problem: Problem, z: Array, share: float = 0.0) -> tuple[str, ...]:
    """Coordinates that more than a share of the points ``[S, P]`` have at an edge."""
    touched = at_edge(problem, z).mean(0) > share
    names = zip(problem.coordinates.names, touched, strict=True)
    return tuple(name for name, hit in names if hit)


def at_edge(problem: Problem, z: Array) -> npt.NDArray[np.bool_]:
    """Which coordinates of the points ``[S, P]`` lie at an edge."""
    low, high = problem.bounds
    room = 1e-4 * (high - low)
    return (z <= low + np.minimum(room, 1e-3)) | (z >= high - np.minimum(room, 1e-3))


def fit(
    runs: Runs,
    law: str = Kaplan.NAME,
    forms: Mapping[str, Form] | Form = "power",
    *,
    delta: float | None = None,
    warm: Array | None = None,
) -> Fit:
    """The law and the gains that make the sum of Huber's loss of log residuals smallest.

    Args:
        runs: Of one backbone; the baseline's fix the law, those with tables its gains.
        law: "kaplan" or "chinchilla".
        forms: Form of gamma for all variants, or by variant.
        delta: Huber's threshold on log loss; without it 1.345 robust standard deviations of the residuals.
        warm: Points ``[S, P]`` to start from in place of the grid.

    Raises:
        DataError: several backbones, or fewer different settings than numbers to fit.
        ConfigError: no such law or form.
    """
    whole = runs.one_backbone()
    runs = usable(whole)
    left_out = tuple(sorted({str(name) for name in whole.variant} - {str(name) for name in runs.variant}))
    problem = make_problem(runs, law, forms)
    settings = count_settings(runs)
    if settings < problem.size:
        raise DataError(
            f"{settings} different settings for a fit of {problem.size} numbers "
            f"({', '.join(problem.coordinates.names)}); accepted: at least as many settings as numbers"
        )
    z = starts(problem, _STARTS, _FIRST_DELTA) if warm is None else warm
    used, tried = delta or _FIRST_DELTA, 0
    while True:
        found = descend(problem.evaluate, z, problem.target, bounds=problem.bounds, delta=used)
        best = int(np.argmin(found.cost))
        residual = problem.target - problem.evaluate(found.z[best : best + 1])[0][0]
        noise = robust_noise(residual, problem.size)
        wanted = delta or max(_HUBER * noise, _LEAST_DELTA)
        if abs(np.log(wanted / used)) < 0.02 or tried > 6:
            break
        z, used, tried = found.z, wanted, tried + 1
    elsewhere = found.cost > found.cost[best] + 2 * noise**2
    return Fit(
        runs=runs,
        problem=problem,
        z=found.z[best],
        delta=used,
        noise=noise,
        settled=bool(found.settled[best]),
        other_minima=int(elsewhere.sum()),
        left_out=left_out,
    )


def robust_noise(residual: Array, fitted: int) -> float:
    """Standard deviation ``[R]`` from the median absolute residual, less the numbers fitted."""
    freedom = max(residual.size - fitted, 1)
    return float(1.4826 * np.median(np.abs(residual)) * np.sqrt(residual.size / freedom))


def count_settings(runs: Runs) -> int:
    """Runs that differ in more than their seed."""
    return len(
        {row for row in zip(runs.variant, runs.compute_params, runs.tokens, runs.eta, runs.rho, strict=True)}
    )
