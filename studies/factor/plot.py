"""Draws both tables: `python studies/factor/plot.py` writes factor.svg and prints the table of README.md."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from run import PRESETS, STDS, TABLE, VARIANTS

from retoken.compare.verdict import plus_minus

HERE = Path(__file__).parent
COLOURS = {"baseline": "#777777", "with": "#c2571a", "without": "#2a6fb0"}
NAMES = {"baseline": "plain", "with": "MoRT, with the factor", "without": "MoRT, without it"}

Key = tuple[str, str]
"""Preset, factor."""


def losses() -> dict[Key, dict[int, float]]:
    """{seed: held-out loss} of each."""
    found: dict[Key, dict[int, float]] = defaultdict(dict)
    with TABLE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["preset"], row["factor"]][int(row["seed"])] = float(row["val_loss"])
    return found


def stds() -> dict[Key, dict[int, list[float]]]:
    """{step: of each seed} of each."""
    found: dict[Key, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with STDS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["preset"], row["factor"]][int(row["step"])].append(float(row["hidden_std"]))
    return found


def table() -> list[str]:
    """Markdown."""
    loss, std = losses(), stds()
    lines = [
        "| preset | | held-out loss, seeds | to the plain backbone | to MoRT with it | std at the end |",
        "|---|---|---|---|---|---|",
    ]
    for preset in PRESETS:
        for factor in VARIANTS:
            own, last = loss[preset, factor], std[preset, factor]
            cells = [
                *(preset, NAMES[factor], ", ".join(f"{own[seed]:.3f}" for seed in sorted(own))),
                *(_less(own, loss[preset, base], factor in (base, "baseline")) for base in VARIANTS[:2]),
                f"{statistics.fmean(last[max(last)]):.2f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _less(own: dict[int, float], base: dict[int, float], same: bool) -> str:
    return "-" if same else plus_minus([own[seed] - base[seed] for seed in sorted(own)])


def draw() -> None:
    """The residual stream's standard deviation in the course of training, a line a seed."""
    std = stds()
    figure, axes = plt.subplots(1, len(PRESETS), figsize=(5, 3.2), layout="constrained", squeeze=False)
    for axis, preset in zip(axes[0], PRESETS, strict=True):
        for factor in VARIANTS:
            steps = sorted(std[preset, factor])
            values = list(zip(*(std[preset, factor][step] for step in steps), strict=True))
            for number, seed in enumerate(values):
                axis.plot(steps, seed, color=COLOURS[factor], label=NAMES[factor] if not number else None)
        axis.set(title=f"{preset}, {PRESETS[preset]} layers", xlabel="step", ylim=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("std of the residual stream")
    axes[0, 0].legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.66))
    plt.rcParams["svg.hashsalt"] = "factor"
    figure.savefig(HERE / "factor.svg", metadata={"Date": None})


if __name__ == "__main__":
    print("\n".join(table()))
    draw()
