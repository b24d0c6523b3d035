"""The pictures of an inspection's page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.ticker import MaxNLocator

from retoken.compare.verdict import listed, signed
from retoken.inspect.inspection import Inspection, Measured
from retoken.report.curves import MARKERS
from retoken.report.palette import ramp, stand_in
from retoken.report.svg import Panel, panel

ORDERS = ("importance", "frequency", "random")
"""Orders of the pruning curve, in the order of their colours."""


def series(number: int) -> str:
    """The colour of a line; 0 is the neutral one."""
    return stand_in(f"series-{number}")


def scales(found: Inspection) -> Panel:
    """Mean scale by layer with its spread over features."""
    layers = list(found.scales)
    mean = np.array([found.scales[layer].mean for layer in layers])
    size = np.array([found.scales[layer].abs_mean for layer in layers])
    spread = np.array([found.scales[layer].std for layer in layers])

    def draw(axes: Axes) -> None:
        axes.fill_between(layers, mean - spread, mean + spread, color=series(1), alpha=0.18, linewidth=0)
        axes.plot(layers, mean, color=series(1), marker=MARKERS[0], markersize=4.5)
        axes.plot(layers, size, color=series(2), marker=MARKERS[1], markersize=4, linestyle="--")
        _layer_axis(axes, layers)
        axes.set_ylabel("s")

    ends = listed(f"layer {layer} {value:.3f}" for layer, value in zip(layers, mean, strict=True))
    words = f"Mean of the scale s by layer, with its spread over features, and mean of |s|: {ends}."
    return panel("inspect-scales", "Scale by layer", words, draw)


def strength_grids(found: Inspection) -> list[Panel]:
    """By layer and band: distance of the gate from 1, and norms of rows."""
    what = "p − 1" if found.variant == "retoken" else "a modulator's residual"
    return [
        _grid(
            found,
            "distance",
            f"Root mean square of {what}, by layer and frequency",
            [[strength.distance for strength in found.strengths[layer]] for layer in found.strengths],
        ),
        _grid(
            found,
            "norm",
            "Norm of a row, by layer and frequency",
            [[strength.norm for strength in found.strengths[layer]] for layer in found.strengths],
        ),
        _grid(
            found,
            "shared",
            "Share of it that a band's tokens have in common",
            [[strength.shared for strength in found.strengths[layer]] for layer in found.strengths],
        ),
    ]


def effective_grid(found: Inspection, measured: Measured) -> Panel:
    """MoRT: effective number of modulators by layer and band."""
    values = [
        [float("nan") if number is None else number for number in load.effective_by_band]
        for load in measured.loads.values()
    ]
    return _grid(found, "effective", "Effective number of modulators, by layer and frequency", values)


def part_grid(found: Inspection, measured: Measured) -> Panel | None:
    """MoRT: by layer and part of the vocabulary, how far its choices are from the layer's; None: not told."""
    parts = list(dict.fromkeys(label for load in measured.loads.values() for label in load.by_part))
    if not parts:
        return None
    values = [[load.by_part[label].apart for label in parts] for load in measured.loads.values()]
    title = "How far a part of the vocabulary is routed apart, by layer"
    return _grid(found, "parts", title, values, parts, "part of the vocabulary")


def _grid(
    found: Inspection,
    name: str,
    title: str,
    values: Sequence[Sequence[float]],
    columns: Sequence[str] | None = None,
    axis: str = "frequency rank",
) -> Panel:
    layers, table = list(found.strengths), np.array(values)
    bands = [band.label for band in found.bands] if columns is None else columns
    low, high = float(np.nanmin(table)), float(np.nanmax(table))

    def draw(axes: Axes) -> None:
        mesh = axes.pcolormesh(
            np.arange(len(bands) + 1) - 0.5,
            np.arange(len(layers) + 1) - 0.5,
            np.ma.masked_invalid(table),
            cmap=ListedColormap(ramp("sequential")),
            norm=Normalize(low, max(high, low + 1e-9)),
            edgecolors="face",
            linewidth=0.4,
        )
        shown = np.unique(np.linspace(0, len(layers) - 1, min(len(layers), 9)).round().astype(int))
        axes.set_yticks(shown, [str(layers[i]) for i in shown])
        axes.set_xticks(range(len(bands)), bands, rotation=28, ha="right", rotation_mode="anchor")
        axes.grid(visible=False)
        axes.set_ylabel("layer")
        axes.set_xlabel(axis if len(bands) > 1 else "")
        assert axes.figure is not None
        bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, aspect=26)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)
        bar.ax.grid(visible=False)

    words = f"{title}: between {low:.3g} and {high:.3g}."
    return panel(f"inspect-{name}", title, words, draw, height=264)


def layer_bars(found: Inspection, measured: Measured) -> Panel:
    """Loss without a layer's modulation."""
    costs = measured.without_layer
    words = "Increase of the held-out loss with one layer's scale at zero: " + _said(
        (f"layer {layer}", cost) for layer, cost in costs.items()
    )
    title = "Held-out loss without one layer's rows"
    return _bars(
        "inspect-layers", title, words, [str(layer) for layer in costs], list(costs.values()), "layer"
    )


def band_bars(found: Inspection, measured: Measured) -> Panel:
    """Loss without a band's rows."""
    labels, costs = [band.label for band in found.bands], measured.without_band
    words = "Increase of the held-out loss with the rows of a band's tokens at zero: " + _said(
        zip((f"ranks {label}" for label in labels), costs, strict=True)
    )
    return _bars(
        "inspect-bands", "Held-out loss without one band's rows", words, labels, costs, "frequency rank"
    )


def _said(pairs: Iterable[tuple[str, float]]) -> str:
    return listed(f"{name} {signed(cost)}" for name, cost in pairs) + "."


def _bars(
    name: str, title: str, words: str, labels: Sequence[str], values: Sequence[float], axis: str
) -> Panel:
    def draw(axes: Axes) -> None:
        axes.axhline(0, color=series(0), linewidth=1.2)
        axes.bar(range(len(labels)), list(values), 0.72, color=series(1), zorder=2)
        shown = np.unique(np.linspace(0, len(labels) - 1, min(len(labels), 12)).round().astype(int))
        slanted: Any = {"rotation": 28, "ha": "right", "rotation_mode": "anchor"} if axis != "layer" else {}
        axes.set_xticks(shown, [str(labels[i]) for i in shown], **slanted)
        axes.set_xlabel(axis)
        axes.set_ylabel("increase, nats per token")
        axes.yaxis.set_major_locator(MaxNLocator(6))

    return panel(name, title, words, draw, height=264)


def pruning_curves(measured: Measured) -> Panel:
    """Loss against the share of tokens that keep their rows."""
    pruning, title = measured.pruning, "Held-out loss against the share of tokens that keep their rows"
    half = pruning.shares.index(0.5)
    said = listed(f"{name} {signed(pruning.increases[name][half])}" for name in ORDERS)

    def draw(axes: Axes) -> None:
        shares = [100 * share for share in pruning.shares]
        for number, name in reversed(list(enumerate(ORDERS))):
            ink, values = series((number + 1) % 3), pruning.increases[name]
            axes.plot(shares, values, color=ink, marker=MARKERS[number], markersize=4, label=name)
        axes.set_xlabel("tokens that keep their rows, %")
        axes.set_ylabel("increase, nats per token")
        axes.set_xlim(0, 100)
        handles, labels = axes.get_legend_handles_labels()
        axes.legend(handles[::-1], labels[::-1], frameon=False, title="order", alignment="left")

    words = f"{title}; with half of them, in the order of {said}."
    return panel("inspect-pruning", title, words, draw, height=264)


def check_scatter(measured: Measured) -> Panel:
    """Estimated against real cost, a point a token."""
    rows = [row for row in measured.checked if row.real is not None]
    real = [float(row.real or 0) for row in rows]

    def draw(axes: Axes) -> None:
        ends = [min(real), max(real)]
        axes.plot(ends, ends, color=series(0), linewidth=1.2)
        axes.plot(real, [row.first for row in rows], MARKERS[1], color=series(2), markersize=4.5, alpha=0.8)
        axes.plot(real, [row.path for row in rows], MARKERS[0], color=series(1), markersize=4.5, alpha=0.8)
        axes.set_xlabel("really zeroed, nats a position")
        axes.set_ylabel("estimated")

    words = (
        f"Estimated against real cost of zeroing a token's rows, {len(rows)} tokens. Rank correlation "
        f"{measured.first_rank:.2f} to first order, {measured.path_rank:.2f} along the path."
    )
    return panel("inspect-check", "Estimated and real cost of a token's rows", words, draw, height=264)


def std_lines(stds: Mapping[str, Mapping[int, float]]) -> Panel:
    """Hidden-state std by depth in each setting."""

    def draw(axes: Axes) -> None:
        for number, by_depth in enumerate(stds.values()):
            ink = series(STD_SERIES[number])
            axes.plot(
                list(by_depth), list(by_depth.values()), color=ink, marker=MARKERS[number], markersize=4.5
            )
        axes.set_xlabel("depth")
        axes.set_ylabel("std")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))

    ends = listed(f"{name} {list(by_depth.values())[-1]:.3f}" for name, by_depth in stds.items())
    words = f"Standard deviation of the residual stream by depth; behind the last block: {ends}."
    return panel("inspect-std", "Hidden-state std by depth", words, draw)


STD_SERIES = (1, 0, 2)
"""Colours of the settings: as trained, without rows, without the factor."""


def _layer_axis(axes: Axes, layers: Sequence[int]) -> None:
    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    if len(layers) == 1:
        axes.set_xlim(layers[0] - 1, layers[0] + 1)
