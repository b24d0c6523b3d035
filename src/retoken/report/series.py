"""Runs of one variant laid over each other: mean and range over seeds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retoken.compare.runs import Array, Curve, Run
from retoken.compare.stats import BASELINE, variants_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """A curve over seeds: x, mean, lowest and highest, each ``[S]``."""

    x: Array
    mean: Array
    low: Array
    high: Array


def by_variant(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs grouped by variant, the baseline first."""
    runs = list(runs)
    names = variants_of(run.record for run in runs)
    return {name: [run for run in runs if run.record.name == name] for name in names}


def band(curves: Sequence[Curve], x: str, y: str = "loss", *, smooth: int = 1) -> Band | None:
    """Curves joined at the steps they share.

    Args:
        curves: One curve a seed.
        x: ``tokens``, ``flops`` or ``seconds``; averaged over seeds.
        y: Which column is drawn.
        smooth: Width of a centred running mean over logged steps.

    Returns:
        None where the curves share no step.
    """
    steps = _shared([curve.step for curve in curves])
    if steps.size == 0:
        return None
    rows = [np.isin(curve.step, steps) for curve in curves]
    xs = np.stack([getattr(curve, x)[row] for curve, row in zip(curves, rows, strict=True)])
    ys = np.stack(
        [running_mean(getattr(curve, y)[row], smooth) for curve, row in zip(curves, rows, strict=True)]
    )
    return Band(x=xs.mean(axis=0), mean=ys.mean(axis=0), low=ys.min(axis=0), high=ys.max(axis=0))


def _shared(steps: Sequence[Array]) -> Array:
    common = steps[0] if steps else np.array([])
    for other in steps[1:]:
        common = np.intersect1d(common, other)
    return common


def running_mean(values: Array, width: int) -> Array:
    """Centred mean over ``width`` neighbours; at the ends over those there are."""
    if width <= 1 or values.size < 3:
        return values
    kernel = np.ones(min(width, values.size))
    return np.convolve(values, kernel, "same") / np.convolve(np.ones_like(values), kernel, "same")


def thinned(curve: Band, most: int = 240) -> Band:
    """The same curve with at most so many points, the last one kept, to keep the page small."""
    if curve.x.size <= most:
        return curve
    keep = np.unique(np.linspace(0, curve.x.size - 1, most).round().astype(int))
    return Band(x=curve.x[keep], mean=curve.mean[keep], low=curve.low[keep], high=curve.high[keep])


def difference_band(groups: Mapping[str, Sequence[Run]], name: str) -> Band | None:
    """Held-out loss of a variant minus the baseline's at the same step and seed, over tokens."""
    pairs = paired(groups, name)
    curves = [_difference(ours.evals, theirs.evals) for ours, theirs in pairs]
    return band(curves, "tokens") if curves else None


def paired(groups: Mapping[str, Sequence[Run]], name: str) -> list[tuple[Run, Run]]:
    """Runs of a variant beside the baseline's run of the same seed."""
    theirs = {run.record.seed: run for run in groups.get(BASELINE, [])}
    return [(run, theirs[run.record.seed]) for run in groups.get(name, []) if run.record.seed in theirs]


def _difference(ours: Curve, theirs: Curve) -> Curve:
    steps = np.intersect1d(ours.step, theirs.step)
    mine, other = np.isin(ours.step, steps), np.isin(theirs.step, steps)
    columns = {
        name: getattr(ours, name)[mine] for name in ("step", "tokens", "seconds", "flops", "bits_per_byte")
    }
    return Curve(**columns, loss=ours.loss[mine] - theirs.loss[other])


def reached(curve: Band, level: float) -> float | None:
    """Where a falling curve first reaches a level (straight lines between points); None if it never does."""
    below = np.flatnonzero(curve.mean <= level)
    if below.size == 0:
        return None
    at = int(below[0])
    if at == 0:
        return float(curve.x[0])
    (x0, x1), (y0, y1) = curve.x[at - 1 : at + 1], curve.mean[at - 1 : at + 1]
    return float(x0 + (x1 - x0) * (y0 - level) / (y0 - y1))


def mean_by_key(
    maps: Sequence[Mapping[int, float]], reduce: Callable[[Array], float] = np.mean
) -> dict[int, float]:
    """Maps of equal keys reduced key by key."""
    if not maps:
        return {}
    keys = [key for key in maps[0] if all(key in other for other in maps)]
    return {key: float(reduce(np.array([other[key] for other in maps]))) for key in keys}
