"""Where a fit starts: variable projection over a grid of exponents.

At given exponents both laws are linear in their other constants once the loss is brought to the right power:
L^(1 / beta) = A^(alpha / beta) N^(-alpha / beta) + B / D, and L = E + A N^-a + B D^-b. Weighting by the
derivative of log loss makes the linear residual the logarithmic one to first order. So a grid over two
exponents with a small linear problem each covers the whole space; the best few are then polished.
"""

from __future__ import annotations

import numpy as np

from retoken.scaling.descend import huber
from retoken.scaling.laws import Array, Kaplan
from retoken.scaling.problem import Problem

_EXPONENTS = np.geomspace(0.02, 1.0, 14)
_LEAST_SHARE = 1e-4
_ROUNDS = 30


def starts(problem: Problem, count: int, delta: float) -> Array:
    """The best points ``[count, P]`` of the grid, gains at small values of their own."""
    law, base = problem.coordinates.law, problem.which < 0
    rows = np.flatnonzero(base) if base.any() else np.arange(base.size)
    first, second = (grid.ravel() for grid in np.meshgrid(_EXPONENTS, _EXPONENTS, indexing="ij"))
    project = _kaplan if law == Kaplan.NAME else _chinchilla
    points = project(first, second, problem.log_n[rows], problem.log_d[rows], problem.target[rows])
    whole = np.concatenate([points, np.tile(_gain_starts(problem), (points.shape[0], 1))], axis=1)
    whole = np.clip(whole, *problem.bounds)
    prediction = problem.evaluate(whole)[0][:, rows]
    cost = huber(prediction - problem.target[rows], delta).sum(1)
    return whole[np.argsort(cost, kind="stable")[:count]]


def _gain_starts(problem: Problem) -> Array:
    guess = {"gain": 0.1, "power": 0.5, "rho_s": 0.05}
    found: list[float] = []
    for slot in problem.coordinates.slots:
        found += [guess.get(name, float(np.log(slot.at))) for name in slot.names]
    return np.array(found)


def _kaplan(alpha: Array, beta: Array, n: Array, d: Array, target: Array) -> Array:
    ratio = (alpha / beta)[:, None]
    parts = np.stack([np.exp(-ratio * n), np.broadcast_to(np.exp(-d), (alpha.size, d.size))], axis=-1)
    powered = np.exp(target / beta[:, None])
    terms = _positive_weights(parts / powered[..., None])
    return np.column_stack([np.log(alpha), np.log(beta), np.log(terms)])


def _chinchilla(a: Array, b: Array, n: Array, d: Array, target: Array) -> Array:
    ones = np.ones((a.size, n.size))
    parts = np.stack([ones, np.exp(-a[:, None] * n), np.exp(-b[:, None] * d)], axis=-1)
    terms = _positive_weights(parts / np.exp(target)[:, None])
    return np.column_stack([np.log(terms), np.log(a), np.log(b)])


def _positive_weights(parts: Array) -> Array:
    """Positive w ``[S, k]`` with parts ``[S, R, k]`` w near 1, by multiplicative updates from even shares."""
    normal = np.swapaxes(parts, 1, 2) @ parts
    right = parts.sum(1)
    found = 1 / (parts.mean(1) * parts.shape[2])
    for _ in range(_ROUNDS):
        found = found * right / np.maximum((normal @ found[..., None])[..., 0], 1e-300)
    exact = np.linalg.solve(normal + 1e-12 * np.eye(parts.shape[2]) * normal.max((1, 2))[:, None, None],
                            right[..., None])[..., 0]  # fmt: skip
    found = np.where((exact > 0).all(1, keepdims=True), exact, found)
    return np.maximum(found, _LEAST_SHARE / parts.mean(1))
