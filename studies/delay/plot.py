"""Draws runs.csv: `python studies/delay/plot.py` writes delay.svg and prints the table of README.md."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from retoken.compare.stats import mean_interval

HERE = Path(__file__).parent
COLOURS = {"post_attention": "#c2571a", "block_input": "#2a6fb0"}

Key = tuple[str, str, int]


def read() -> tuple[dict[Key, dict[int, float]], dict[str, dict[int, float]]]:
    """{(preset, router input, delay): {seed: loss}}, and the plain backbones' by preset."""
    mort: dict[Key, dict[int, float]] = defaultdict(dict)
    plain: dict[str, dict[int, float]] = defaultdict(dict)
    with (HERE / "runs.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            loss, seed = float(row["val_loss"]), int(row["seed"])
            if row["variant"] == "baseline":
                plain[row["preset"]][seed] = loss
            else:
                mort[row["preset"], row["router_input"], int(row["delay"])][seed] = loss
    return mort, plain


def paired(ours: dict[int, float], theirs: dict[int, float]) -> tuple[float, float]:
    """Mean difference over seeds, and half of its 95 % interval."""
    mean, half = mean_interval(ours[seed] - theirs[seed] for seed in sorted(ours))
    return mean, half or 0.0


def table() -> list[str]:
    """Markdown."""
    mort, plain = read()
    lines = [
        "| preset | router input | l_d | held-out loss, seeds | against l_d = 0 "
        "| against the baseline | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for (preset, router, delay), losses in sorted(mort.items()):
        gap, half = paired(losses, mort[preset, router, 0])
        gain, spread = paired(losses, plain[preset])
        whole, _ = paired(mort[preset, router, 0], plain[preset])
        own = ", ".join(f"{losses[seed]:.3f}" for seed in sorted(losses))
        cost = f"{gap:+.3f} ± {half:.3f}" if delay else "-"
        lines.append(
            f"| {preset} | {router} | {delay} | {own} | {cost} | {gain:+.3f} ± {spread:.3f} "
            f"| {gain / whole:.0%} |"
        )
    return lines


def draw() -> None:
    """Loss against l_d = 0 by delay."""
    mort, _ = read()
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True, layout="constrained")
    for axis, preset in zip(axes, ("cpu-xs", "cpu-s"), strict=True):
        for router, colour in COLOURS.items():
            gaps = [paired(mort[preset, router, d], mort[preset, router, 0]) for d in (1, 2)]
            means, halves = [0.0, *(gap for gap, _ in gaps)], [0.0, *(half for _, half in gaps)]
            axis.errorbar((0, 1, 2), means, halves, color=colour, marker="o", capsize=3, label=router)
        axis.set_title(preset)
        axis.set_xlabel("injection delay l_d (layers)")
        axis.set_xticks((0, 1, 2))
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("held-out loss over l_d = 0 (nats)")
    axes[0].legend(title="router input", frameon=False)
    figure.savefig(HERE / "delay.svg", metadata={"Date": None})


if __name__ == "__main__":
    print("\n".join(table()))
    draw()
