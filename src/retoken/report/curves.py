"""Loss against tokens, FLOPs and seconds (Fig. 2), and differences to the baseline."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from retoken.compare.runs import Run
from retoken.compare.stats import BASELINE, Effect
from retoken.compare.verdict import listed, signed, title
from retoken.report.palette import SERIES, stand_in
from retoken.report.series import Band, band, difference_band, thinned
from retoken.report.svg import Panel, panel

Groups = Mapping[str, Sequence[Run]]

MARKERS = ("o", "s", "D", "^", "v")
# The steep first part of a run is cut from the picture: its height would flatten what is to be compared.
_CUT = 0.12


def order(names: Sequence[str]) -> dict[str, int]:
    """The colour number of each variant; the known three keep theirs whoever else takes part."""
    known = ["baseline", "retoken", "mort"]
    rest = [name for name in names if name not in known]
    return {name: (known + rest).index(name) % SERIES for name in names}


def colour(names: Sequence[str], name: str) -> str:
    """A variant's stand-in colour."""
    return stand_in(f"series-{order(names)[name]}")


def loss_panels(groups: Groups) -> list[Panel]:
    """Held-out loss, then training loss, each against tokens, FLOPs and seconds."""
    panels = []
    for which, words in (("evals", "Held-out loss"), ("train", "Training loss")):
        for axis in ("tokens", "flops", "seconds"):
            bands = _bands(groups, which, axis)
            if bands:
                panels.append(_loss_panel(f"{which}-{axis}", words, axis, bands, markers=which == "evals"))
    return panels


def _bands(groups: Groups, which: str, axis: str) -> dict[str, Band]:
    bands = {}
    for name, runs in groups.items():
        curves = [getattr(run, which) for run in runs]
        width = max(1, round(0.02 * min(curve.step.size for curve in curves))) if which == "train" else 1
        found = band(curves, axis, smooth=width)
        if found is not None:
            bands[name] = thinned(found)
    return bands


def _loss_panel(name: str, words: str, axis: str, bands: Mapping[str, Band], *, markers: bool) -> Panel:
    unit = {"tokens": "tokens", "flops": "FLOPs", "seconds": "seconds"}[axis]

    def draw(axes: Axes) -> None:
        names = list(bands)
        for variant, curve in bands.items():
            _line(axes, curve, names, variant, markers=markers)
        _loss_limits(axes, list(bands.values()))
        label_x(axes, axis, max(curve.x.max() for curve in bands.values()))

    ends = listed(f"{title(variant)} {curve.mean[-1]:.3f}" for variant, curve in bands.items())
    return panel(
        name, f"{words} against {unit}", f"{words} in nats per token against {unit}; at the end {ends}.", draw
    )


def _line(axes: Axes, curve: Band, names: Sequence[str], variant: str, *, markers: bool) -> None:
    number = order(names)[variant]
    ink = stand_in(f"series-{number}")
    axes.fill_between(curve.x, curve.low, curve.high, color=ink, alpha=0.18, linewidth=0)
    marker = MARKERS[number] if markers and curve.x.size <= 40 else None
    axes.plot(curve.x, curve.mean, color=ink, marker=marker, markersize=4, linestyle="-", zorder=3 + number)


def _loss_limits(axes: Axes, curves: Sequence[Band]) -> None:
    tops, lows = [], []
    for curve in curves:
        late = curve.x >= curve.x[0] + _CUT * (curve.x[-1] - curve.x[0])
        tops.append(np.nanmax(curve.high[late] if late.any() else curve.high))
        lows.append(np.nanmin(curve.low))
    low, top = min(lows), max(tops)
    if np.isfinite(low) and np.isfinite(top) and top > low:
        axes.set_ylim(low - 0.05 * (top - low), top + 0.05 * (top - low))
    axes.set_ylabel("nats per token")
    axes.yaxis.set_major_locator(MaxNLocator(6))


def label_x(axes: Axes, kind: str, highest: float) -> None:
    """Ticks read at a glance: tokens in K/M/B, seconds or minutes or hours, FLOPs as a power of ten."""
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlim(left=0)
    if kind == "tokens":
        divisor, suffix = next(
            ((d, s) for d, s in ((1e9, " B"), (1e6, " M"), (1e3, " K")) if highest >= d), (1, "")
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / divisor:g}{suffix if x else ''}"))
        axes.set_xlabel("tokens seen")
    elif kind == "flops":
        power = int(np.floor(np.log10(highest))) if highest > 0 else 0
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 10.0**power:g}"))
        raised = str(power).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
        axes.set_xlabel(f"training FLOPs, × 10{raised}")
    else:
        divisor, word = (
            (3600, "hours") if highest > 7200 else (60, "minutes") if highest > 240 else (1, "seconds")
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / divisor:g}"))
        axes.set_xlabel(f"training time, {word}")
        _scale_locator(axes, highest, divisor)


def _scale_locator(axes: Axes, highest: float, divisor: float) -> None:
    """Round ticks in the shown unit, not in seconds."""
    ticks = np.asarray(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, highest / divisor)) * divisor
    axes.set_xticks([tick for tick in ticks if 0 <= tick <= highest * 1.02])


def difference_panel(groups: Groups) -> Panel | None:
    """Held-out loss minus the baseline's, paired by seed, while training runs."""
    names = list(groups)
    bands = {name: found for name in names if name != BASELINE and (found := difference_band(groups, name))}
    if not bands:
        return None

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=colour(names, BASELINE), linewidth=1.6)
        for name, curve in bands.items():
            _line(axes, curve, names, name, markers=True)
        axes.set_ylabel("nats per token")
        label_x(axes, "tokens", max(curve.x.max() for curve in bands.values()))

    ends = listed(f"{title(name)} {signed(curve.mean[-1])}" for name, curve in bands.items())
    words = f"Held-out loss minus the baseline's of the same seed, against tokens; at the end {ends}."
    return panel("difference", "Difference to the baseline, over training", words, draw)


def effect_panel(effects: Sequence[Effect], names: Sequence[str]) -> Panel | None:
    """Every seed's paired difference, the mean and its 95 % interval."""
    if not effects:
        return None

    def draw(axes: Axes) -> None:
        axes.axvline(0, color=colour(names, BASELINE), linewidth=1.6)
        for row, effect in enumerate(effects):
            ink, mean = colour(names, effect.name), effect.difference.mean
            if effect.half_width is not None:
                axes.plot(
                    [mean - effect.half_width, mean + effect.half_width],
                    [row, row],
                    color=ink,
                    alpha=0.3,
                    lw=9,
                    solid_capstyle="butt",
                )
            axes.plot([mean, mean], [row - 0.24, row + 0.24], color=ink, lw=2.4)
            axes.plot(
                list(effect.differences),
                [float(row)] * len(effect.differences),
                "o",
                color=ink,
                markersize=5,
                zorder=5,
            )
        axes.set_yticks(range(len(effects)), [title(effect.name) for effect in effects])
        axes.set_ylim(len(effects) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("nats per token")

    words = "; ".join(f"{title(e.name)}: {listed(signed(d) for d in e.differences)}" for e in effects)
    return panel(
        "effects", "Difference to the baseline, by seed", f"Paired differences by seed. {words}.", draw
    )
