"""Robust least squares of many fits at once: starts of one fit, bootstrap draws, leave-one-out fits.

Levenberg-Marquardt with analytic gradients on Huber's loss; the same steps for S fits in batched linear
algebra.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retoken.scaling.laws import Array

Evaluate = Callable[[Array], tuple[Array, Array]]
"""Points ``[S, P]`` to predictions ``[S, R]`` and their derivatives ``[S, R, P]``."""

_MAX_STEP = 2.0
_TRIES = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Descent:
    """Where S fits came to."""

    z: Array
    """``[S, P]``."""
    cost: Array
    """``[S]``: weighted sum of Huber's loss."""
    settled: npt.NDArray[np.bool_]
    """``[S]``: whether steps had become too small to matter."""


def huber(residual: Array, delta: float) -> Array:
    """r^2 / 2 within delta, delta (|r| - delta / 2) beyond."""
    size = np.abs(residual)
    return np.where(size <= delta, 0.5 * residual**2, delta * (size - 0.5 * delta))


def descend(
    evaluate: Evaluate,
    start: Array,
    target: Array,
    *,
    bounds: tuple[Array, Array],
    delta: float,
    weight: Array | None = None,
    tries: int = _TRIES,
) -> Descent:
    """Minimise the sum over runs of weight * huber(prediction - target) for each of S fits.

    Args:
        evaluate: The model.
        start: ``[S, P]``, inside the bounds.
        target: ``[R]`` or ``[S, R]``.
        bounds: Lowest and highest ``[P]``; equal ones keep a coordinate fixed.
        delta: Residual at which Huber's loss turns linear.
        weight: ``[R]`` or ``[S, R]``; all 1 without it.
        tries: Most steps.
    """
    count = start.shape[0]
    target = np.broadcast_to(target, (count, target.shape[-1]))
    weight = np.ones_like(target) if weight is None else np.broadcast_to(weight, target.shape)
    z, damping = start.copy(), np.full(count, 1e-3)
    prediction, slope = evaluate(z)
    cost = (weight * huber(prediction - target, delta)).sum(1)
    settled = np.zeros(count, dtype=np.bool_)
    for _ in range(tries):
        busy = np.flatnonzero(~settled)
        if not busy.size:
            break
        residual = prediction[busy] - target[busy]
        step = _step(residual, slope[busy], weight[busy], damping[busy], z[busy], bounds, delta)
        moved = np.clip(z[busy] + step, *bounds)
        ahead, ahead_slope = evaluate(moved)
        new = (weight[busy] * huber(ahead - target[busy], delta)).sum(1)
        better = new < cost[busy]
        gained = cost[busy] - new
        small = np.abs(moved - z[busy]).max(1) < 1e-9
        settled[busy] = (better & (gained <= 1e-13 * cost[busy])) | small | (damping[busy] > 1e9)
        kept = busy[better]
        z[kept], prediction[kept], slope[kept] = moved[better], ahead[better], ahead_slope[better]
        cost[kept] = new[better]
        damping[busy] = np.where(better, np.maximum(damping[busy] / 5, 1e-12), damping[busy] * 5)
    return Descent(z=z, cost=cost, settled=settled)


def _step(
    residual: Array,
    slope: Array,
    weight: Array,
    damping: Array,
    z: Array,
    bounds: tuple[Array, Array],
    delta: float,
) -> Array:
    """A damped Gauss-Newton step ``[S, P]`` of reweighted least squares, zero along walls it would cross."""
    reweighted = weight * np.minimum(1.0, delta / np.maximum(np.abs(residual), 1e-300))
    weighted = slope * reweighted[..., None]
    gradient = (weighted * residual[..., None]).sum(1)
    low, high = bounds
    walled = ((z <= low) & (gradient > 0)) | ((z >= high) & (gradient < 0)) | (low == high)
    weighted, slope = np.where(walled[:, None], 0.0, weighted), np.where(walled[:, None], 0.0, slope)
    normal = np.swapaxes(weighted, 1, 2) @ slope
    diagonal = np.einsum("spp->sp", normal)
    ridge = damping[:, None] * diagonal + 1e-14 * diagonal.max(1, keepdims=True) + 1e-300
    system = normal + np.eye(z.shape[1]) * np.where(walled, 1.0, ridge)[:, None]
    step = -np.linalg.solve(system, np.where(walled, 0.0, gradient)[..., None])[..., 0]
    return np.clip(step, -_MAX_STEP, _MAX_STEP).astype(np.float64, copy=False)
