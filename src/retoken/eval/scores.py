"""From results of tasks to the numbers of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retoken.errors import ConfigError
from retoken.eval.benchmarks import headline, is_share
from retoken.eval.results import Metric, ResultsFolder, TaskResult

BITS = "gold_bits_per_byte"

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """A benchmark: one task, or the items of its tasks together."""

    name: str
    n: int
    """Documents."""
    metric: str
    """The one it is quoted by."""
    value: float
    stderr: float | None
    gold_bits_per_byte: float | None
    """Mean over documents of the right answer's; None where an answer is written, not chosen."""
    metrics: dict[str, float]
    """All, by name."""
    cut: int
    """Requests that lost their beginning, as they were longer than the model's context."""


def scores(folder: ResultsFolder, benchmarks: Mapping[str, tuple[str, ...]]) -> tuple[Score, ...]:
    """The numbers of each benchmark.

    Args:
        folder: holds every task.
        benchmarks: {benchmark: its tasks}.
    """
    return tuple(_score(name, [folder.read(task) for task in tasks]) for name, tasks in benchmarks.items())


def mean_score(found: tuple[Score, ...]) -> float | None:
    """The mean over benchmarks; None for one alone, or where a metric is no share."""
    if len(found) < 2 or not all(is_share(score.metric) for score in found):
        return None
    return float(np.mean([score.value for score in found]))


def _score(name: str, results: list[TaskResult]) -> Score:
    shared = [metric for metric in results[0].metrics if all(metric in other.metrics for other in results)]
    if not shared:
        raise ConfigError(f"--tasks {name}: its tasks have no metric in common; accepted: its tasks by name")
    metrics = {metric: _pooled(results, metric) for metric in shared}
    quoted = headline(name, shared)
    bits = column_of(results, BITS)
    return Score(
        name=name,
        n=sum(len(result.items) for result in results),
        metric=quoted,
        value=metrics[quoted].value,
        stderr=metrics[quoted].stderr,
        gold_bits_per_byte=None if bits is None else float(bits.mean()),
        metrics={metric: found.value for metric, found in metrics.items()},
        cut=sum(result.about.get("cut", 0) for result in results),
    )


def _pooled(results: list[TaskResult], metric: str) -> Metric:
    """The harness's own number of one task; of several, the mean over all their documents."""
    if len(results) == 1:
        return results[0].metrics[metric]
    values = column_of(results, metric)
    if values is None:
        sizes = [len(result.items) for result in results]
        mean = np.average([result.metrics[metric].value for result in results], weights=sizes)
        return Metric(value=float(mean), stderr=None)
    stderr = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return Metric(value=float(values.mean()), stderr=stderr)


def column_of(results: list[TaskResult], metric: str) -> Array | None:
    """A number of every document of a benchmark's tasks.

    Args:
        results: its tasks.
        metric: a metric's name, or `BITS`.

    Returns:
        [N]; None where some document has no such number, or a task's own is not the mean of them.
    """
    found = [
        [item.gold_bits_per_byte if metric == BITS else item.values.get(metric) for item in result.items]
        for result in results
    ]
    if any(value is None for part in found for value in part):
        return None
    parts = [np.array(part, dtype=np.float64) for part in found]
    if metric != BITS:
        told = [result.metrics[metric].value for result in results]
        if not np.allclose([part.mean() for part in parts], told, rtol=0, atol=1e-9):
            return None
    return np.concatenate(parts)
