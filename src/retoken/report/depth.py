"""By depth: scales over training (Figs. 6-7), hidden-state std (Fig. 9), choices of modulators."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from retoken.compare.runs import Array, Probe, Run
from retoken.compare.verdict import listed, title
from retoken.report.curves import MARKERS, Groups, colour, label_x, order
from retoken.report.palette import ramp
from retoken.report.series import mean_by_key
from retoken.report.svg import Panel, panel

_MOST_COLUMNS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """How often each modulator of each layer was chosen at the end of a variant's runs."""

    name: str
    layers: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    """``[layers][E]``, mean over seeds; a row sums to 1."""

    @property
    def even(self) -> float:
        """The share each modulator has where all are chosen alike."""
        return float(np.mean([sum(row) / len(row) for row in self.shares]))

    @property
    def lowest(self) -> tuple[float, int, int]:
        """Smallest share with its layer and modulator."""
        return min((share, layer, i) for layer, row in zip(self.layers, self.shares, strict=True)
                   for i, share in enumerate(row))  # fmt: skip

    @property
    def highest(self) -> tuple[float, int, int]:
        """Largest share with its layer and modulator."""
        return max((share, layer, i) for layer, row in zip(self.layers, self.shares, strict=True)
                   for i, share in enumerate(row))  # fmt: skip


def scale_panels(groups: Groups) -> list[Panel]:
    """A heatmap of the mean scale a variant, then the profile by depth at the end of training."""
    panels = []
    for name, runs in groups.items():
        grid = _scale_grid(runs)
        if grid is not None:
            panels.append(_heatmap(name, *grid))
    profile = _profile_panel(
        groups, "scale_mean", "scales-end", "Mean scale by layer, end of training", "mean of s"
    )
    return panels + ([profile] if profile else [])


def _scale_grid(runs: Sequence[Run]) -> tuple[Array, list[int], Array] | None:
    """Tokens ``[S]``, layers and mean scales ``[layers, S]`` at the steps all seeds share."""
    by_step = [{probe.step: probe for probe in run.probes if probe.scale_mean} for run in runs]
    steps = sorted(set.intersection(*(set(probes) for probes in by_step))) if by_step else []
    if len(steps) < 2:
        return None
    steps = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, _MOST_COLUMNS).round().astype(int))]
    layers = list(by_step[0][steps[0]].scale_mean)
    columns = [mean_by_key([probes[step].scale_mean for probes in by_step]) for step in steps]
    values = np.array([[column[layer] for column in columns] for layer in layers])
    return np.array([_tokens(runs[0], by_step[0][step]) for step in steps]), layers, values


def _tokens(run: Run, probe: Probe) -> float:
    """Tokens seen at a probe; looked up by step where the line did not carry them."""
    if probe.tokens or not run.train.step.size:
        return float(probe.tokens)
    return float(np.interp(probe.step, run.train.step, run.train.tokens))


def _heatmap(name: str, tokens: Array, layers: list[int], values: Array) -> Panel:
    low, high = float(values.min()), float(values.max())
    kind = "diverging" if low < 0 < high else "sequential"
    if kind == "diverging":
        low, high = -max(-low, high), max(-low, high)

    def draw(axes: Axes) -> None:
        colours = ListedColormap(ramp(kind))
        edges = np.concatenate([[tokens[0]], (tokens[1:] + tokens[:-1]) / 2, [tokens[-1]]])
        rows = np.arange(len(layers) + 1) - 0.5
        # A hairline in the cell's own colour closes the seams that viewers leave between neighbouring cells.
        mesh = axes.pcolormesh(edges, rows, values, cmap=colours, norm=Normalize(low, max(high, low + 1e-9)),
                               edgecolors="face", linewidth=0.4)  # fmt: skip
        shown = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 9)).round().astype(int))
        axes.set_yticks(shown, [str(layers[i]) for i in shown])
        axes.grid(visible=False)
        axes.set_ylabel("layer")
        label_x(axes, "tokens", float(tokens[-1]))
        axes.set_xlim(tokens[0], tokens[-1])
        assert axes.figure is not None
        bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=26)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.ax.grid(visible=False)
        bar.locator = MaxNLocator(5)
        bar.update_ticks()

    last = values[:, -1]
    words = (
        f"Heatmap of the mean scale of {title(name)} by layer over training. At the end it is "
        f"largest in layer {layers[int(last.argmax())]} ({last.max():.3f}) "
        f"and smallest in layer {layers[int(last.argmin())]} ({last.min():.3f})."
    )
    return panel(f"scale-{name}", f"Mean scale of {title(name)} by layer, over training", words, draw)


def std_panels(groups: Groups) -> list[Panel]:
    """Hidden-state std by depth at the end, and its mean over depth while training runs."""
    profile = _profile_panel(
        groups, "hidden_std", "std-depth", "Hidden-state std by depth, end of training", "std"
    )
    return [found for found in (profile, _std_course(groups)) if found is not None]


def _profile_panel(groups: Groups, what: str, name: str, words: str, label: str) -> Panel | None:
    ends = {v: [last for run in runs if (last := _last(run, what))] for v, runs in groups.items()}
    ends = {variant: found for variant, found in ends.items() if found}
    if not ends:
        return None

    def draw(axes: Axes) -> None:
        for variant, found in ends.items():
            number, ink = order(list(groups))[variant], colour(list(groups), variant)
            mean, low, high = (mean_by_key(found, reduce) for reduce in (np.mean, np.min, np.max))
            axes.fill_between(
                list(low), list(low.values()), list(high.values()), color=ink, alpha=0.18, linewidth=0
            )
            axes.plot(list(mean), list(mean.values()), color=ink, marker=MARKERS[number], markersize=4.5)
        axes.set_xlabel("depth" if what == "hidden_std" else "layer")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        if what == "hidden_std":
            axes.set_ylim(bottom=0)

    tops = listed(f"{title(v)} {list(mean_by_key(found).values())[-1]:.3f}" for v, found in ends.items())
    return panel(name, words, f"{words}. At the far end: {tops}.", draw)


def _last(run: Run, what: str) -> Mapping[int, float]:
    found: list[Mapping[int, float]] = [getattr(probe, what) for probe in run.probes if getattr(probe, what)]
    return found[-1] if found else {}


def _std_course(groups: Groups) -> Panel | None:
    courses = {name: _std_curve(runs) for name, runs in groups.items()}
    courses = {name: course for name, course in courses.items() if course is not None}
    if not courses:
        return None

    def draw(axes: Axes) -> None:
        for name, (tokens, mean, low, high) in courses.items():
            ink = colour(list(groups), name)
            axes.fill_between(tokens, low, high, color=ink, alpha=0.18, linewidth=0)
            axes.plot(tokens, mean, color=ink)
        axes.set_ylabel("std, mean over depth")
        axes.set_ylim(bottom=0)
        label_x(axes, "tokens", max(course[0].max() for course in courses.values()))

    ends = listed(f"{title(name)} {course[1][-1]:.3f}" for name, course in courses.items())
    words = "Hidden-state std, mean over depth"
    return panel("std-course", words, f"{words}, against tokens; at the end {ends}.", draw)


def _std_curve(runs: Sequence[Run]) -> tuple[Array, Array, Array, Array] | None:
    rows = [
        {p.step: float(np.mean(list(p.hidden_std.values()))) for p in run.probes if p.hidden_std}
        for run in runs
    ]
    steps = sorted(set.intersection(*map(set, rows))) if rows else []
    if len(steps) < 2:
        return None
    values = np.array([[row[step] for step in steps] for row in rows])
    probes = {probe.step: probe for probe in runs[0].probes}
    tokens = np.array([_tokens(runs[0], probes[step]) for step in steps])
    return tokens, values.mean(axis=0), values.min(axis=0), values.max(axis=0)


def loads(groups: Groups) -> list[Load]:
    """Modulator load at the end of each routed variant."""
    found = []
    for name, runs in groups.items():
        ends = [next((p.load for p in reversed(run.probes) if p.load), None) for run in runs]
        maps = [load for load in ends if load]
        if maps:
            layers = tuple(maps[0])
            shares = tuple(
                tuple(np.mean([load[layer] for load in maps], axis=0).tolist()) for layer in layers
            )
            found.append(Load(name=name, layers=layers, shares=shares))
    return found
