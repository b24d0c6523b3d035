"""How often rows are read, by token ids or hashes, and how many distinct ones a batch is expected to hold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from retoken.errors import DataError
from retoken.plan.shape import require

ACCEPTED = "a .npy of integer counts, [V], or [splits, V] as a token store has it"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Frequencies:
    """A distribution over ids of rows, and how much real batches repeat themselves beyond it."""

    probability: np.ndarray
    """p: [V], sums to 1; by id, because ids decide who owns a row."""
    lookups: int = 1
    """Ids a token reads: several where rows are looked up by n-grams and summed."""
    clustering: tuple[tuple[int, float], ...] = ()
    """(tokens, distinct ids of real batches of so many over those of independent draws), ascending."""
    origin: str = field(default="")
    """Where it comes from, for people."""

    @classmethod
    def of_counts(
        cls, counts: np.ndarray, vocab_size: int | None = None, origin: str = "", lookups: int = 1
    ) -> Frequencies:
        """From occurrences [V]; ids from there up to `vocab_size` occur never (padding of a vocabulary).

        Raises:
            DataError: no occurrences, or more ids than the vocabulary has.
        """
        size = vocab_size or len(counts)
        if counts.ndim != 1 or len(counts) > size or counts.sum() <= 0 or counts.min() < 0:
            raise DataError(
                f"token counts {origin} have shape {list(counts.shape)} and sum {counts.sum():g}; "
                f"accepted: [V] with V up to {size}, not negative, not all zero"
            )
        padded = np.zeros(size)
        padded[: len(counts)] = counts
        return cls(probability=padded / padded.sum(), origin=origin, lookups=lookups)

    @classmethod
    def load(cls, path: Path, vocab_size: int | None = None) -> Frequencies:
        """From a file of counts; of several splits the first, which is "train".

        Raises:
            DataError: the file is not there or is something else.
        """
        try:
            counts = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            why = getattr(error, "strerror", None) or "not a NumPy file"
            raise DataError(f"token counts {path} cannot be read: {why}; accepted: {ACCEPTED}") from None
        integers = isinstance(counts, np.ndarray) and counts.dtype.kind in "iu" and counts.ndim in (1, 2)
        if not integers or counts.size == 0:
            found = f"{counts.dtype} {list(counts.shape)}" if isinstance(counts, np.ndarray) else "an archive"
            raise DataError(f"token counts {path} hold {found}; accepted: {ACCEPTED}")
        return cls.of_counts(counts if counts.ndim == 1 else counts[0], vocab_size, str(path))

    @classmethod
    def zipf(cls, vocab_size: int, exponent: float, shift: float = 0.0) -> Frequencies:
        """p of the r-th id (from 1) as (r + shift)^-exponent: Zipf-Mandelbrot, frequent ids first.

        Raises:
            ConfigError: a negative exponent or shift.
        """
        require(exponent >= 0, "zipf", exponent, "an exponent from 0")
        require(shift >= 0, "zipf_shift", shift, "a number from 0")
        weight = (np.arange(1, vocab_size + 1) + shift) ** -float(exponent)
        origin = f"Zipf, exponent {exponent:g}" + (f", shift {shift:g}" if shift else "")
        return cls(probability=weight / weight.sum(), origin=origin)

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.probability)

    def clustered(self, points: tuple[tuple[int, float], ...]) -> Frequencies:
        """With what real batches were found to repeat."""
        return replace(self, clustering=tuple(sorted(points)))

    def ratio(self, tokens: int) -> float:
        """Distinct ids of a real batch over those of independent draws, interpolated in log(tokens)."""
        if not self.clustering or tokens < 1:
            return 1.0
        sizes, ratios = zip(*self.clustering, strict=True)
        return float(np.interp(np.log(tokens), np.log(sizes), ratios))

    def unique(self, tokens: int, shards: int = 1, chance: float = 1.0) -> np.ndarray:
        """[shards]: expected distinct ids in `tokens` tokens that belong to each shard (id % shards).

        R = sum over x of 1 - (1 - p_x)^(T lookups) for independent draws, times `ratio`.

        Args:
            tokens: T.
            shards: S_V.
            chance: of an occurrence to count: K / E gives distinct (id, modulator) pairs of one modulator.
        """
        with np.errstate(divide="ignore"):
            draws = tokens * self.lookups
            seen = -np.expm1(draws * np.log1p(-np.minimum(self.probability * chance, 1.0)))
        return _fold(seen, shards) * self.ratio(tokens)

    def shares(self, shards: int) -> np.ndarray:
        """[shards]: how many of the ids that a token reads belong to each shard, on average."""
        return _fold(self.probability, shards) * self.lookups


def _fold(values: np.ndarray, shards: int) -> np.ndarray:
    """Sums over ids x with the same x % shards."""
    padded = np.zeros(-(-len(values) // shards) * shards)
    padded[: len(values)] = values
    return padded.reshape(-1, shards).sum(0)


def fit_zipf(counts: np.ndarray) -> tuple[float, float]:
    """Exponent and shift of a Zipf-Mandelbrot law, by maximum likelihood over the ranks of counts [V].

    For each shift the best exponent is found by bisection on the likelihood's slope (it is concave in the
    exponent: the law is an exponential family in log(rank + shift)), the shift by golden section.

    Returns:
        (exponent, shift).
    """
    ordered = np.sort(np.asarray(counts, np.float64))[::-1]
    rank = np.arange(1, len(ordered) + 1)

    def loss(log_shift: float) -> float:
        logs = np.log(rank + np.expm1(log_shift))
        exponent = _exponent(ordered, logs)
        return exponent * ordered @ logs + ordered.sum() * _log_sum(-exponent * logs)

    shift = float(np.expm1(_minimum(loss, 0.0, np.log1p(1000.0))))
    return _exponent(ordered, np.log(rank + shift)), shift


def _exponent(counts: np.ndarray, logs: np.ndarray) -> float:
    """Where the mean of log(rank + shift) under the law is the counts'."""
    mean, low, high = counts @ logs / counts.sum(), 0.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        weight = np.exp(-middle * logs)
        low, high = (middle, high) if weight @ logs / weight.sum() > mean else (low, middle)
    return (low + high) / 2


def _log_sum(values: np.ndarray) -> float:
    top = values.max()
    return float(top + np.log(np.exp(values - top).sum()))


def _minimum(function, low: float, high: float) -> float:
    """Golden section on a function with one valley."""
    golden = (np.sqrt(5) - 1) / 2
    for _ in range(40):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if function(a) < function(b) else (a, high)
    return (low + high) / 2
