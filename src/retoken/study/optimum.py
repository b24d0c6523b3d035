"""Where a budget is spent best: the vertex of a parabola through loss over log N_c."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The best size of one budget."""

    budget: float
    backbone: str
    compute_params: float
    """N_c at the vertex, or of the smallest loss where there is none inside."""
    nearest: str
    """The trained shape (its preset) nearest to it."""
    loss: float
    """The smallest loss measured."""
    found: Literal["vertex", "edge"]
    """"edge": the loss still falls at an end of the sizes; add sizes there."""


def best_size(backbone: str, budget: float, losses: Mapping[str, tuple[int, float]]) -> Best:
    """The best of {preset: (N_c, loss)}: least squares over the four sizes around the smallest loss.

    Far sizes are left out because the curve is no parabola over its whole width. With fewer than three sizes,
    or where the parabola has no minimum between the sizes, the smallest loss counts.
    """
    points = sorted((size, loss, preset) for preset, (size, loss) in losses.items())
    lowest = min(range(len(points)), key=lambda i: points[i][1])
    near = sorted(range(len(points)), key=lambda i: (abs(i - lowest), points[i][1]))[:4]
    x = np.log([points[i][0] for i in sorted(near)])
    y = np.array([points[i][1] for i in sorted(near)])
    vertex = _vertex(x, y) if len(x) > 2 else None
    inside = vertex is not None and math.log(points[0][0]) <= vertex <= math.log(points[-1][0])
    size = math.exp(vertex) if inside and vertex is not None else float(points[lowest][0])
    nearest = min(points, key=lambda point: abs(math.log(point[0] / size)))
    edge = not inside or lowest in (0, len(points) - 1)
    return Best(
        budget=budget,
        backbone=backbone,
        compute_params=size,
        nearest=nearest[2],
        loss=points[lowest][1],
        found="edge" if edge else "vertex",
    )


def _vertex(x: np.ndarray, y: np.ndarray) -> float | None:
    """Where the least-squares parabola has its minimum; None where it opens downwards."""
    middle = x.mean()
    square, slope, _ = np.polyfit(x - middle, y, 2)
    return float(middle - slope / (2 * square)) if square > 0 else None
