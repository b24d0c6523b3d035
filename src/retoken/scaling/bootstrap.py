"""How far fitted constants would move with other runs and other seeds.

The unit is a seed group: the baseline and every variant of one size, token count and seed. They share
backbone start and data order, so their errors move together, and a resample keeps them together.

"wild" keeps the design and turns the sign of each group's residuals at random, residuals first stretched by
their leverage. "runs" draws groups with replacement, within each budget, so that no isocompute curve
vanishes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from retoken.errors import ConfigError
from retoken.scaling.descend import descend
from retoken.scaling.fit import Fit
from retoken.scaling.laws import Array
from retoken.scaling.runs import Runs

Method = Literal["wild", "runs"]
_TRIES = 150
_MOST_LEVERAGE = 0.9
_LEAST_DIRECTION = 1e-8
_BATCH = 100


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draws:
    """Fits to resampled runs."""

    z: Array
    """Points of those that came to rest, ``[S, P]``."""
    asked: int
    """How many were drawn."""
    jackknife: Array
    """Points with one seed group left out, ``[G, P]``: what BCa takes its skew from."""
    method: Method
    freedom: int
    """See `freedom_of`."""

    @property
    def settled(self) -> float:
        """Share that came to rest."""
        return self.z.shape[0] / self.asked


def seed_groups(runs: Runs) -> npt.NDArray[np.int64]:
    """Which seed group each run is of, ``[R]``."""
    keys = list(zip(runs.budget, runs.compute_params, runs.tokens, runs.seed, strict=True))
    number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return np.array([number[key] for key in keys], dtype=np.int64)


def bootstrap(fit: Fit, draws: int = 400, *, method: Method = "wild", seed: int = 0) -> Draws:
    """Refit to resampled runs, each from the fit's own point.

    Args:
        fit: What is resampled.
        draws: How many resamples; from 20.
        method: See above.
        seed: The same one gives the same draws.

    Raises:
        ConfigError: too few draws, or no such method.
    """
    if draws < 20:
        raise ConfigError(f"draws is {draws}; accepted: from 20")
    if method not in get_args(Method):
        raise ConfigError(f"method is {method!r}; accepted: {', '.join(get_args(Method))}")
    rng = np.random.default_rng(seed)
    groups = seed_groups(fit.runs)
    if method == "wild":
        targets, weights = _wild_targets(fit, groups, draws, rng), np.ones((draws, groups.size))
    else:
        targets = np.broadcast_to(fit.problem.target, (draws, groups.size))
        weights = _drawn_weights(fit.runs, groups, draws, rng)
    z, settled = _refit(fit, targets, weights)
    return Draws(
        z=z[settled],
        asked=draws,
        jackknife=jackknife(fit, groups),
        method=method,
        freedom=freedom_of(fit, groups),
    )


def freedom_of(fit: Fit, groups: npt.NDArray[np.int64]) -> int:
    """Seed groups less numbers fitted to them, of the law or of the gain that has the fewest left.

    Few groups carry tables where variants are trained at each budget's optimum only; what is said of the gain
    is then known no better than from those few.
    """
    slots = fit.problem.coordinates.slots
    law_size = fit.problem.size - sum(len(slot.names) for slot in slots)
    left = [np.unique(groups).size - law_size]
    for number, slot in enumerate(slots):
        left.append(np.unique(groups[fit.problem.which == number]).size - len(slot.names))
    return int(min(left))


def jackknife(fit: Fit, groups: npt.NDArray[np.int64]) -> Array:
    """Points ``[G, P]`` with each group left out in turn."""
    without = (groups != np.arange(groups.max() + 1)[:, None]).astype(np.float64)
    z, settled = _refit(fit, np.broadcast_to(fit.problem.target, without.shape), without)
    return z[settled]


def stretched(fit: Fit, groups: npt.NDArray[np.int64]) -> Array:
    """Residuals as they would be had their group not pulled the fit towards itself, ``[R]``.

    (1 - H_gg)^-1 r_g for each seed group g, H the hat matrix of the linearised fit: the cluster jackknife's
    residuals ("CR3"), with which few groups do not look more certain than they are.
    """
    slope = fit.slope
    left, size, _ = np.linalg.svd(
        slope / np.maximum(np.linalg.norm(slope, axis=0), 1e-300), full_matrices=False
    )
    left = left[:, size > _LEAST_DIRECTION * size.max()]
    found = fit.residuals.copy()
    for group in range(groups.max() + 1):
        rows = np.flatnonzero(groups == group)
        share, turn = np.linalg.eigh(left[rows] @ left[rows].T)
        kept = 1 - np.minimum(share, _MOST_LEVERAGE)
        found[rows] = turn @ ((turn.T @ found[rows]) / kept)
    return found


def _wild_targets(fit: Fit, groups: npt.NDArray[np.int64], draws: int, rng: np.random.Generator) -> Array:
    signs = rng.choice([-1.0, 1.0], size=(draws, groups.max() + 1))
    return fit.predicted + stretched(fit, groups) * signs[:, groups]


def _drawn_weights(runs: Runs, groups: npt.NDArray[np.int64], draws: int, rng: np.random.Generator) -> Array:
    """How often each run is in each resample, ``[S, R]``. Groups with tables are drawn among themselves."""
    count = groups.max() + 1
    budget, tables = np.zeros(count), np.zeros(count)
    budget[groups] = runs.budget
    np.maximum.at(tables, groups, (runs.eta > 0).astype(np.float64))
    times = np.zeros((draws, count))
    for stratum in {pair for pair in zip(budget, tables, strict=True)}:
        members = np.flatnonzero((budget == stratum[0]) & (tables == stratum[1]))
        times[:, members] = rng.multinomial(members.size, np.full(members.size, 1 / members.size), draws)
    return times[:, groups]


def _refit(fit: Fit, targets: Array, weights: Array) -> tuple[Array, npt.NDArray[np.bool_]]:
    """In batches, so that memory stays small."""
    points, settled = [], []
    for first in range(0, weights.shape[0], _BATCH):
        part = slice(first, first + _BATCH)
        found = descend(
            fit.problem.evaluate,
            np.tile(fit.z, (weights[part].shape[0], 1)),
            targets[part],
            bounds=fit.problem.bounds,
            delta=fit.delta,
            weight=weights[part],
            tries=_TRIES,
        )
        points.append(found.z)
        settled.append(found.settled)
    return np.concatenate(points), np.concatenate(settled)
