"""Two checkpoints on the same tokens: the difference, and how far it would move with other documents.

Documents are drawn with replacement, not tokens: those of a document are hard or easy together. The interval
is about the text alone; another seed of training would move the difference too, and one pair of checkpoints
cannot say by how much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

DRAWS = 10_000
LEVEL = 0.95
LEAST_UNITS = 10
"""With fewer, redrawing them says too little of others."""
_AT_ONCE = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A checkpoint against another on the tokens of one group."""

    val_loss: float
    """The other's nats per token."""
    difference: float
    """This one's nats per token minus the other's; negative is better."""
    low: float | None
    """Lower end of the paired 95 % interval; None where the tokens are of fewer than 10 units."""
    high: float | None
    """Its upper end."""
    share: float
    """Of the summed difference over all tokens that are divided; 1 over the groups together."""


def differences(ours_UG: Array, theirs_UG: Array, count_UG: Array, seed: int = 0) -> list[Difference | None]:
    """Differences by group, with the percentile interval of a bootstrap over units.

    Args:
        ours_UG: Nats, summed by unit and group.
        theirs_UG: The other's, of the same tokens.
        count_UG: Tokens.
        seed: The same one gives the same intervals.

    Returns:
        One a group; None for a group without tokens.
    """
    change_UG = ours_UG - theirs_UG
    change, count = change_UG.sum(0), count_UG.sum(0)
    whole = change.sum()
    drawn_NG = _drawn_means(change_UG, count_UG, np.random.default_rng(seed))
    found: list[Difference | None] = []
    for group in range(count.size):
        if not count[group]:
            found.append(None)
            continue
        low, high = _interval(drawn_NG[:, group], units=int((count_UG[:, group] > 0).sum()))
        found.append(
            Difference(
                val_loss=float(theirs_UG[:, group].sum() / count[group]),
                difference=float(change[group] / count[group]),
                low=low,
                high=high,
                share=float(change[group] / whole) if whole else 0.0,
            )
        )
    return found


def _drawn_means(change_UG: Array, count_UG: Array, chance: np.random.Generator) -> Array:
    """[DRAWS, G]: means over redrawn units; nan where none of a group's was drawn."""
    units = len(count_UG)
    means = []
    for _ in range(0, DRAWS, _AT_ONCE):
        drawn = chance.integers(units, size=(_AT_ONCE, units)) + units * np.arange(_AT_ONCE)[:, None]
        times = np.bincount(drawn.ravel(), minlength=_AT_ONCE * units).reshape(_AT_ONCE, units)
        count = times @ count_UG
        means.append(np.divide(times @ change_UG, count, out=np.full_like(count, np.nan), where=count > 0))
    return np.concatenate(means)


def _interval(means: Array, units: int) -> tuple[float | None, float | None]:
    if units < LEAST_UNITS:
        return None, None
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail])
    return float(low), float(high)
