"""Which tokens gained most and lost most against the baseline, and how the gain is shared by frequency."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from retoken.compare.runs import Array, Run
from retoken.compare.stats import BASELINE
from retoken.compare.verdict import signed, title
from retoken.report.curves import Groups, colour
from retoken.report.series import paired
from retoken.report.svg import Panel, panel

SHOWN = 12
"""Tokens listed on each side."""
BANDS = ((1, 10), (11, 100), (101, 1000), (1001, 10**9))
"""Frequency ranks of the held-out text, most frequent first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenChange:
    """One token's mean held-out loss where it was to be predicted, over seeds."""

    text: str
    count: int
    baseline: float
    variant: float
    steady: bool
    """Whether every seed moved the same way."""

    @property
    def change(self) -> float:
        """Variant minus baseline, nats per occurrence."""
        return self.variant - self.baseline


@dataclass(frozen=True, kw_only=True, slots=True)
class BandChange:
    """Tokens of a range of frequency ranks taken together."""

    label: str
    types: int
    share_of_tokens: float
    change: float
    """Nats per occurrence, variant minus baseline."""
    share_of_change: float
    """Of the summed difference over all tokens; sums to 1 over the bands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenReport:
    """Where a variant's difference comes from."""

    name: str
    threshold: int
    """Least count of a listed token."""
    tokens: int
    """Held-out tokens counted."""
    gained: tuple[TokenChange, ...]
    lost: tuple[TokenChange, ...]
    bands: tuple[BandChange, ...]

    @property
    def largest(self) -> float:
        """The largest change listed, which the bars are drawn to."""
        return max((abs(entry.change) for entry in (*self.gained, *self.lost)), default=1.0)


def token_reports(groups: Groups, decode: Callable[[int], str]) -> list[TokenReport]:
    """One report a variant that has token losses beside the baseline's.

    Args:
        groups: Runs by variant.
        decode: Text of a token id, spaces and line ends made visible.
    """
    return [
        found
        for name in groups
        if name != BASELINE and (found := _report(name, paired(groups, name), decode)) is not None
    ]


def _report(name: str, pairs: Sequence[tuple[Run, Run]], decode: Callable[[int], str]) -> TokenReport | None:
    losses = [(ours.token_loss(), theirs.token_loss()) for ours, theirs in pairs]
    complete = [(ours, theirs) for ours, theirs in losses if ours is not None and theirs is not None]
    if not complete:
        return None
    count = complete[0][0][1]
    if any(not np.array_equal(count, other) for pair in complete for _, other in pair):
        return None  # seeds evaluated on different text cannot be laid over each other
    ours, theirs = (np.stack([pair[side][0] for pair in complete]) for side in (0, 1))
    threshold = _threshold(count)
    eligible = np.flatnonzero(count >= threshold)
    change = (ours - theirs).mean(axis=0)[eligible] / count[eligible]
    ranked = eligible[np.argsort(change, kind="stable")]

    def entry(token: int) -> TokenChange:
        by_seed = ours[:, token] - theirs[:, token]
        return TokenChange(
            text=decode(token),
            count=int(count[token]),
            baseline=float(theirs[:, token].mean() / count[token]),
            variant=float(ours[:, token].mean() / count[token]),
            steady=bool((by_seed < 0).all() or (by_seed > 0).all()),
        )

    entries = [entry(int(token)) for token in [*ranked[:SHOWN], *ranked[-SHOWN:]]] if ranked.size else []
    return TokenReport(
        name=name,
        threshold=threshold,
        tokens=int(count.sum()),
        gained=tuple(e for e in entries[:SHOWN] if e.change < 0),
        lost=tuple(e for e in reversed(entries[-SHOWN:]) if e.change > 0),
        bands=tuple(_bands(count, (ours - theirs).mean(axis=0))),
    )


def _threshold(count: Array) -> int:
    """High enough that chance does not fill the list, low enough that some hundred tokens take part."""
    seen = np.sort(count)[::-1]
    reachable = int(seen[min(399, seen.size - 1)])
    return max(10, min(100, reachable))


def _bands(count: Array, change: Array) -> list[BandChange]:
    ranked = np.argsort(-count, kind="stable")
    ranked = ranked[count[ranked] > 0]
    total, summed = count.sum(), change.sum()
    found = []
    for first, last in BANDS:
        ids = ranked[first - 1 : last]
        if ids.size == 0:
            continue
        end = f"{first:,}–{last:,}" if last < 10**9 else f"from {first:,}"
        found.append(
            BandChange(
                label=end,
                types=int(ids.size),
                share_of_tokens=float(count[ids].sum() / total),
                change=float(change[ids].sum() / count[ids].sum()),
                share_of_change=float(change[ids].sum() / summed) if summed else 0.0,
            )
        )
    return found


def band_panels(reports: Sequence[TokenReport], names: Sequence[str]) -> list[Panel]:
    """By frequency rank, one bar a variant: the difference per occurrence, and the share of the whole."""
    if not reports:
        return []
    each = "Difference to the baseline by token frequency"
    return [
        _bars("bands", each, "nats per occurrence", reports, names, lambda band: band.change),
        _bars(
            "band-shares",
            "Share of the whole difference",
            "%",
            reports,
            names,
            lambda band: 100 * band.share_of_change,
        ),
    ]


def _bars(
    name: str,
    words: str,
    label: str,
    reports: Sequence[TokenReport],
    names: Sequence[str],
    value: Callable[[BandChange], float],
) -> Panel:
    def draw(axes: Axes) -> None:
        width = 0.8 / len(reports)
        axes.axhline(0, color=colour(names, BASELINE), linewidth=1.6)
        for number, report in enumerate(reports):
            at = np.arange(len(report.bands)) + (number - (len(reports) - 1) / 2) * width
            axes.bar(
                at,
                [value(band) for band in report.bands],
                width * 0.92,
                color=colour(names, report.name),
                zorder=2,
            )
        axes.set_xticks(range(len(reports[0].bands)), [band.label for band in reports[0].bands])
        axes.set_xlabel("frequency rank in the held-out text")
        axes.set_ylabel(label)
        axes.yaxis.set_major_locator(MaxNLocator(6))

    said = "; ".join(
        f"{title(report.name)}: "
        + ", ".join(f"ranks {band.label} {signed(value(band), 2)}" for band in report.bands)
        for report in reports
    )
    return panel(name, words, f"{words}, bars by frequency rank. {said}.", draw)
