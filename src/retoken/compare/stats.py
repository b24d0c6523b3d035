"""What the numbers say: spread over seeds, differences paired by seed, and a verdict that follows from them.

Runs form a two-way layout, variant by seed: runs of one seed share data order and backbone start, so a
variant's difference to the baseline is taken within the seed. The noise of such a difference is the residual
of the layout (seed and variant effects removed), pooled over the variants; with two variants this is the
paired t-test.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from retoken.compare.runs import RunRecord
from retoken.train.config import BASELINE

Verdict = Literal["helped", "hurt", "undecided"]

# Two-sided 95 % quantiles of Student's t by degrees of freedom; beyond the last one 1.96 is near enough.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Mean of a measurement over seeds, with its sample standard deviation (None for one seed)."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """A variant against the reference, over the seeds that both finished."""

    name: str
    reference: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    """Held-out loss of the variant minus the reference's, by seed, in nats per token; negative is better."""
    difference: Spread
    bits_per_byte: Spread | None
    half_width: float | None
    """Half of the 95 % interval of the mean difference; None where the spread cannot be estimated."""
    relative: float
    """Mean difference over the reference's mean loss."""
    speed: float
    """Tokens per second over the reference's, mean over seeds."""
    verdict: Verdict

    @property
    def one_sided(self) -> bool:
        """Whether every seed moved the same way."""
        return all(d < 0 for d in self.differences) or all(d > 0 for d in self.differences)


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation."""
    array = np.array(list(values), dtype=np.float64)
    std = float(array.std(ddof=1)) if array.size > 1 else None
    return Spread(mean=float(array.mean()), std=std, count=int(array.size))


def mean_interval(values: Iterable[float]) -> tuple[float, float | None]:
    """Mean, and half of its 95 % interval by Student's t; None with one value."""
    found = spread(values)
    if found.std is None:
        return found.mean, None
    return found.mean, t95(found.count - 1) * found.std / found.count**0.5


def bits_spread(ours: Sequence[RunRecord], theirs: Sequence[RunRecord] | None = None) -> Spread | None:
    """Spread of bits per byte, or of its paired differences; None where a run has no such number."""
    mine = [record.val_bits_per_byte for record in ours]
    other = [record.val_bits_per_byte for record in theirs] if theirs else [0.0] * len(mine)
    pairs = [(a, b) for a, b in zip(mine, other, strict=True) if a is not None and b is not None]
    return spread(a - b for a, b in pairs) if len(pairs) == len(mine) else None


def variants_of(records: Iterable[RunRecord]) -> list[str]:
    """Variant names in order of appearance, the baseline first."""
    names = list(dict.fromkeys(record.name for record in records))
    return sorted(names, key=lambda name: name != BASELINE)


def effects(records: Sequence[RunRecord]) -> list[Effect]:
    """Every variant against the baseline (empty without a baseline or a shared seed)."""
    table = {(record.name, record.seed): record for record in records}
    names = variants_of(records)
    if BASELINE not in names:
        return []
    noise = _pooled_noise(records, names)
    found = []
    for name in names:
        seeds = sorted(seed for other, seed in table if other == name and (BASELINE, seed) in table)
        if name != BASELINE and seeds:
            found.append(_effect(name, seeds, table, noise))
    return found


def _effect(
    name: str, seeds: list[int], table: Mapping[tuple[str, int], RunRecord], noise: tuple[float, int] | None
) -> Effect:
    ours, theirs = [table[name, s] for s in seeds], [table[BASELINE, s] for s in seeds]
    differences = [a.val_loss - b.val_loss for a, b in zip(ours, theirs, strict=True)]
    mean = float(np.mean(differences))
    half = None
    if noise is not None and len(seeds) > 1:
        mean_square, freedom = noise
        half = t95(freedom) * float(np.sqrt(2 * mean_square / len(seeds)))
    return Effect(
        name=name,
        reference=BASELINE,
        seeds=tuple(seeds),
        differences=tuple(differences),
        difference=spread(differences),
        bits_per_byte=bits_spread(ours, theirs),
        half_width=half,
        relative=mean / float(np.mean([b.val_loss for b in theirs])),
        speed=float(
            np.mean([a.tokens_per_second / b.tokens_per_second for a, b in zip(ours, theirs, strict=True)])
        ),
        verdict=_verdict(mean, half),
    )


def t95(freedom: int) -> float:
    """Two-sided 95 % quantile of Student's t."""
    return _T95[freedom - 1] if freedom <= len(_T95) else 1.96 + 2.4 / freedom


def _verdict(mean: float, half_width: float | None) -> Verdict:
    if half_width is None or abs(mean) <= half_width:
        return "undecided"
    return "helped" if mean < 0 else "hurt"


def _pooled_noise(records: Sequence[RunRecord], names: list[str]) -> tuple[float, int] | None:
    """Residual mean square of loss ~ seed + variant, over seeds all variants finished; and its freedom."""
    table = {(record.name, record.seed): record.val_loss for record in records}
    seeds = [s for s in sorted({r.seed for r in records}) if all((name, s) in table for name in names)]
    if len(seeds) < 2 or len(names) < 2:
        return None
    loss = np.array([[table[name, seed] for seed in seeds] for name in names])
    residual = loss - loss.mean(axis=0) - loss.mean(axis=1, keepdims=True) + loss.mean()
    freedom = (len(names) - 1) * (len(seeds) - 1)
    return float((residual**2).sum() / freedom), freedom
