"""Two checkpoints on the same tokens: the difference, and how far it would move with other documents.

Documents are drawn with replacement, not tokens: those of a document are hard or easy together. The interval
is about the text alone; another seed of training would move the difference too, and one pair of checkpoints
cannot say by how much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retoken.eval.bootstrap import Array, drawn_means, interval

LEAST_UNITS = 10
"""With fewer, redrawing them says too little of others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupDifference:
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


def differences(
    ours_UG: Array, theirs_UG: Array, count_UG: Array, seed: int = 0
) -> list[GroupDifference | None]:
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
    drawn_NG = drawn_means(change_UG, count_UG, np.random.default_rng(seed))
    found: list[GroupDifference | None] = []
    for group in range(count.size):
        if not count[group]:
            found.append(None)
            continue
        enough = int((count_UG[:, group] > 0).sum()) >= LEAST_UNITS
        low, high = interval(drawn_NG[:, group]) if enough else (None, None)
        found.append(
            GroupDifference(
                val_loss=float(theirs_UG[:, group].sum() / count[group]),
                difference=float(change[group] / count[group]),
                low=low,
                high=high,
                share=float(change[group] / whole) if whole else 0.0,
            )
        )
    return found
