"""Means over units drawn with replacement, and the interval they span."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DRAWS = 10_000
LEVEL = 0.95
_AT_ONCE = 2_000_000  # drawn indices held at a time


def drawn_means(sums_UG: Array, count_UG: Array, chance: np.random.Generator, draws: int = DRAWS) -> Array:
    """[draws, G]: means of G groups over units drawn with replacement; nan where a draw has none of a group.

    Groups share their draws, and a group's means do not depend on which others there are.

    Args:
        sums_UG: What is summed in each of U units, by group.
        count_UG: What the sums are divided by: tokens of a document, 1 for an item.
        chance: Draws the units.
        draws: How many times all U are drawn.
    """
    units = len(sums_UG)
    block = max(1, _AT_ONCE // units)
    means = []
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        drawn = chance.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)
        # Group by group: a product with all of them at once would round by how many there are.
        total, count = (np.stack([times @ each for each in of.T], axis=1) for of in (sums_UG, count_UG))
        means.append(np.divide(total, count, out=np.full_like(count, np.nan), where=count > 0))
    return np.concatenate(means)


def interval(means_N: Array) -> tuple[float, float]:
    """The percentile interval of `LEVEL`."""
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(means_N, [tail, 1 - tail])
    return float(low), float(high)
