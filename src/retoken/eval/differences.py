"""Two checkpoints' results on the same documents: differences of benchmarks, with intervals."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retoken.errors import ConfigError
from retoken.eval.benchmarks import is_share
from retoken.eval.bootstrap import DRAWS, Array, drawn_means, interval
from retoken.eval.results import ResultsFolder, TaskResult
from retoken.eval.scores import BITS, Score, column_of

_SAME = ("harness", "data", "limit")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Ours minus theirs, mean over items, with a percentile interval of 95 %."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A number of a benchmark: how ours differs from theirs."""

    difference: Difference
    means_R: Array
    """Of R draws of documents."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Against:
    """Ours minus theirs on the same documents; a benchmark is absent whose number is not a mean over them."""

    name: str
    """The other checkpoint."""
    metric: dict[str, Difference]
    """By benchmark, in the metric it is quoted by."""
    bits: dict[str, Difference]
    """By benchmark, bits per byte of the right answer."""
    mean: Difference | None
    """Of the metrics, over benchmarks; None for one alone, or where a metric is no share."""
    mean_bits: Difference | None


def check_comparable(settings: Mapping[str, Any], tasks: Iterable[str], other: ResultsFolder) -> None:
    """Refuse results that were not measured alike, or of other tasks, before anything is measured.

    Raises:
        ConfigError: names the setting or the task.
    """
    for key in _SAME:
        if settings[key] != other.settings.get(key):
            raise ConfigError(
                f"--against {other.path} has {key} {other.settings.get(key)!r}; accepted: "
                f"{settings[key]!r}, as here"
            )
    for task in tasks:
        if not other.has(task):
            raise ConfigError(f"--against {other.path} has no {task}; accepted: results of the same tasks")


def against(
    ours: ResultsFolder,
    theirs: ResultsFolder,
    benchmarks: Mapping[str, tuple[str, ...]],
    found: Sequence[Score],
    seed: int = 0,
) -> Against:
    """Differences on the same documents.

    Args:
        ours, theirs: two checkpoints' results.
        benchmarks: {benchmark: its tasks}.
        found: our scores of them; they say which metric each is quoted by.
        seed: of the draws.

    Raises:
        ConfigError: documents of a task are others.
        CheckpointError: a task is not in the other folder, or broken there.
    """
    metric: dict[str, Compared] = {}
    bits: dict[str, Compared] = {}
    for score in found:
        mine = [ours.read(task) for task in benchmarks[score.name]]
        other = [_same_items(result, theirs) for result in mine]
        columns = {kind: _column(mine, other, kind) for kind in (score.metric, BITS)}
        present = {kind: column for kind, column in columns.items() if column is not None}
        if not present:
            continue
        means_RM = resampled_means(np.stack(list(present.values()), axis=1), score.name, seed=seed)
        for place, (kind, column) in enumerate(present.items()):
            means_R = means_RM[:, place]
            into = bits if kind == BITS else metric
            into[score.name] = Compared(difference=difference(column.mean(), means_R), means_R=means_R)
    shares = all(is_share(score.metric) for score in found)
    return Against(
        name=theirs.name,
        metric={name: compared.difference for name, compared in metric.items()},
        bits={name: compared.difference for name, compared in bits.items()},
        mean=_mean(metric, len(found)) if shares else None,
        mean_bits=_mean(bits, len(found)),
    )


def _mean(compared: Mapping[str, Compared], wanted: int) -> Difference | None:
    """Over all benchmarks that were asked for, or none."""
    if len(compared) < max(wanted, 2):
        return None
    means = {name: one.difference.mean for name, one in compared.items()}
    return mean_difference(means, {name: one.means_R for name, one in compared.items()})


def _column(mine: list[TaskResult], other: list[TaskResult], kind: str) -> Array | None:
    one, two = column_of(mine, kind), column_of(other, kind)
    return None if one is None or two is None else one - two


def _same_items(mine: TaskResult, theirs: ResultsFolder) -> TaskResult:
    other = theirs.read(mine.task)
    if len(other.items) != len(mine.items):
        raise ConfigError(
            f"--against {theirs.path} has {len(other.items)} documents of {mine.task}; accepted: the same "
            f"{len(mine.items)} as here"
        )
    for number, (one, two) in enumerate(zip(mine.items, other.items, strict=True)):
        if one.hash != two.hash:
            raise ConfigError(
                f"--against {theirs.path} has another document {number} of {mine.task}; accepted: the same "
                "documents in the same order"
            )
    return other


def resampled_means(values_NM: Array, name: str, *, seed: int = 0, resamples: int = DRAWS) -> Array:
    """[resamples, M]: means of M numbers over N items drawn with replacement; the M share their draws.

    Args:
        values_NM: [N, M].
        name: the benchmark's; with the seed it decides the draws, whatever else is measured beside it.
        seed: of the draws.
        resamples: how many.
    """
    chance = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return drawn_means(values_NM, np.ones_like(values_NM), chance, resamples)


def difference(mean: float, means_R: Array) -> Difference:
    """A mean with the interval of its resampled ones."""
    low, high = interval(means_R)
    return Difference(mean=float(mean), low=low, high=high)


def mean_difference(differences: Mapping[str, float], means_R: Mapping[str, Array]) -> Difference:
    """The mean over benchmarks, each counting once; items are drawn within each benchmark.

    Args:
        differences: {benchmark: mean difference}.
        means_R: {benchmark: its resampled mean differences [R]}.
    """
    over = np.mean([means_R[name] for name in differences], axis=0)
    return difference(float(np.mean(list(differences.values()))), over)
