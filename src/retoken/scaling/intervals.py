"""Intervals from bootstrap draws: percentile and BCa (Efron 1987), or none where the draws cannot carry one.

Percentiles of a bootstrap are those of a normal where the sample is small; they are taken further out, by the
ratio of Student's t to the normal (Hesterberg 2015, "expanded percentile").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtr, ndtri, stdtrit

from retoken.scaling.laws import Array

Kind = Literal["percentile", "bca"]
LEAST_SETTLED = 0.9
"""Share of draws that must have come to rest, or be finite, for an interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """Where a number lies with probability `level`."""

    low: float
    high: float
    level: float

    def holds(self, value: float) -> bool:
        """Whether it contains a value."""
        return self.low <= value <= self.high


def interval(
    draws: Array,
    *,
    asked: int,
    freedom: float = float("inf"),
    level: float = 0.95,
    kind: Kind = "percentile",
    point: float = float("nan"),
    left_out: Array | None = None,
) -> Interval | None:
    """The middle `level` of draws ``[S]``.

    Args:
        draws: Of those that came to rest; infinite and NaN ones count as lost.
        asked: How many were drawn.
        freedom: Independent groups that bear on the number, less the numbers fitted to them.
        level: From 0 to 1.
        kind: "bca" shifts the percentiles by bias and skew.
        point: The estimate; for "bca".
        left_out: Jackknife values ``[G]``; for "bca".

    Returns:
        None: no freedom is left, fewer than `LEAST_SETTLED` of the draws are usable, or "bca" has nothing to
        take its shift from.
    """
    finite = draws[np.isfinite(draws)]
    if finite.size < max(LEAST_SETTLED * asked, 2) or freedom < 1:
        return None
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    if np.isfinite(freedom):
        tails = ndtr(stdtrit(freedom, tails))
    if kind == "bca":
        shifted = _shifted(tails, finite, point, left_out)
        if shifted is None:
            return None
        tails = shifted
    low, high = np.quantile(finite, tails)
    return Interval(low=float(low), high=float(high), level=level)


def _shifted(tails: Array, draws: Array, point: float, left_out: Array | None) -> Array | None:
    below = float((draws < point).mean() + 0.5 * (draws == point).mean())
    if left_out is None or left_out.size < 3 or not 0 < below < 1:
        return None
    lean = left_out.mean() - left_out
    size = float((lean**2).sum())
    skew = float((lean**3).sum()) / (6 * size**1.5) if size > 0 else 0.0
    bias = ndtri(below)
    reach = bias + ndtri(tails)
    return ndtr(bias + reach / (1 - skew * reach))
