"""Held-out loss of each kind of token, or the difference to another checkpoint, as one figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from retoken.compare.verdict import signed
from retoken.eval import DomainLoss
from retoken.eval.pairing import GroupDifference
from retoken.report.curves import MARKERS
from retoken.report.palette import SERIES, stand_in
from retoken.report.svg import Panel, panel

WIDTH, LINE, FRAME = 520, 17, 76
_HEADINGS = {
    "all": "",
    "band": "occurrences in training",
    "row": "occurrences, predicted from",
    "position": "place in the window",
    "part": "part of the vocabulary",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """One number of the figure."""

    kind: str
    group: str
    number: int
    """The group's place among its kind's."""
    domain: int
    value: float
    low: float | None
    high: float | None


def breakdown_panel(domains: Sequence[DomainLoss], paired: bool) -> Panel:
    """A line a group under its kind's heading, a marker a domain.

    Args:
        domains: What was measured; at least one.
        paired: Draw differences to the other checkpoint with their intervals, in place of losses; groups too
            small for an interval are left out.
    """
    dots = [dot for number, domain in enumerate(domains) for dot in _dots(number, domain, paired)]
    lines = _lines(dots)
    label = "difference in nats per token" if paired else "nats per token"

    def draw(axes: Axes) -> None:
        if paired:
            axes.axvline(0, color=stand_in("muted"), linewidth=1.2)
        for number, domain in enumerate(domains):
            shift = 0.6 * ((number + 0.5) / len(domains) - 0.5)
            own = [dot for dot in dots if dot.domain == number]
            _draw_domain(axes, own, lines, number, shift, domain.domain)
        _label(axes, lines)
        axes.set_xlabel(label)
        if len(domains) > 1:
            axes.legend(frameon=False, fontsize=10)

    what = "Difference in held-out loss" if paired else "Held-out loss"
    said = "; ".join(f"{dot.kind} {dot.group} {_number(dot.value, paired)}" for dot in dots if not dot.domain)
    height = FRAME + (LINE + 4 * (len(domains) - 1)) * len(lines)
    return panel(
        "breakdown", f"{what} by kind of token", f"{what}. {said}.", draw, width=WIDTH, height=height
    )


def _number(value: float, paired: bool) -> str:
    return signed(value) if paired else f"{value:.3f}"


def _dots(number: int, domain: DomainLoss, paired: bool) -> list[Dot]:
    def dot(kind: str, group: str, place: int, loss: float, against: GroupDifference | None) -> Dot:
        if paired and against is not None:
            value, low, high = against.difference, against.low, against.high
        else:
            value, low, high = loss, None, None
        return Dot(kind=kind, group=group, number=place, domain=number, value=value, low=low, high=high)

    found = [dot("all", "all tokens", 0, domain.held_out.val_loss, domain.difference)]
    for kind, groups in domain.by.items():
        known = [each for each in groups if not paired or (each.against and each.against.low is not None)]
        found += [dot(kind, each.group, each.number, each.val_loss, each.against) for each in known]
    return found


def _lines(dots: Sequence[Dot]) -> list[tuple[str, str]]:
    """(kind, group) from the top; a kind's heading has an empty group."""
    order: dict[str, dict[int, str]] = {}
    for dot in dots:
        order.setdefault(dot.kind, {})[dot.number] = dot.group
    return [
        (kind, group)
        for kind, groups in order.items()
        for group in ([""] if _HEADINGS[kind] else []) + [groups[number] for number in sorted(groups)]
    ]


def _draw_domain(
    axes: Axes, dots: Sequence[Dot], lines: Sequence[tuple[str, str]], number: int, shift: float, name: str
) -> None:
    ink, marker = stand_in(f"series-{(number + 1) % SERIES}"), MARKERS[number % len(MARKERS)]
    heights = [lines.index((dot.kind, dot.group)) + shift for dot in dots]
    for dot, height in zip(dots, heights, strict=True):
        if dot.low is not None and dot.high is not None:
            axes.plot([dot.low, dot.high], [height, height], color=ink, linewidth=1.6)
    axes.plot([dot.value for dot in dots], heights, marker, color=ink, markersize=4.5, label=name)


def _label(axes: Axes, lines: Sequence[tuple[str, str]]) -> None:
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.set_yticks(range(len(lines)), [group or _HEADINGS[kind] for kind, group in lines])
    for tick, (_, group) in zip(axes.get_yticklabels(), lines, strict=True):
        if not group:
            tick.set_fontweight("bold")
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(6))
