"""Two models on the same items: the difference, and how much of it another draw of items could have made."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_BLOCK = 2_000_000  # drawn indices held at once

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Ours minus theirs, mean over items, with a percentile interval of 95 %."""

    mean: float
    low: float
    high: float


def resampled_means(values_NM: Array, name: str, *, seed: int = 0, resamples: int = RESAMPLES) -> Array:
    """Means over items drawn with replacement.

    Args:
        values_NM: [N, M] M numbers of N items; the M columns share their draws.
        name: the benchmark's; with the seed it decides the draws, whatever else is measured beside it.
        seed: of the draws.
        resamples: R, how many.

    Returns:
        [R, M].
    """
    chance = np.random.default_rng([seed, zlib.crc32(name.encode())])
    count = len(values_NM)
    block = max(1, _BLOCK // count)
    parts = []
    for start in range(0, resamples, block):
        drawn_RN = chance.integers(count, size=(min(block, resamples - start), count), dtype=np.int32)
        parts.append(np.stack([column[drawn_RN].mean(axis=1) for column in values_NM.T], axis=1))
    return np.concatenate(parts)


def difference(mean: float, means_R: Array) -> Difference:
    """The interval between the 2.5th and 97.5th percentile of resampled means."""
    low, high = np.quantile(means_R, (0.025, 0.975))
    return Difference(mean=float(mean), low=float(low), high=float(high))


def mean_difference(differences: Mapping[str, float], means_R: Mapping[str, Array]) -> Difference:
    """The mean over benchmarks, each counting once; items are drawn within each benchmark.

    Args:
        differences: {benchmark: mean difference}.
        means_R: {benchmark: its resampled mean differences [R]}.
    """
    over = np.mean([means_R[name] for name in differences], axis=0)
    return difference(float(np.mean(list(differences.values()))), over)
