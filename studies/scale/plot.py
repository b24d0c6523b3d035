"""Draws ladder.csv: `python studies/scale/plot.py` writes ladder.svg and prints the ladder's medians."""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
BASE = "no tables"
JTOK = {"naive": 0.57, "sharded": 0.83, "deduplicated": 0.93}
"""As JTok reports it of a 3.2B-A0.5B on a cluster it does not describe."""
COLOURS = {"retoken": "#2a6fb0", "mort": "#c2571a"}
LABELS = {"retoken": "ReToken", "mort": "MoRT"}


def ratios() -> dict[str, dict[str, list[float]]]:
    """{variant: {rung: throughput over that without tables, by repeat}}."""
    seconds: dict[str, dict[tuple[str, str], float]] = defaultdict(dict)
    with (HERE / "ladder.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            variant = row["part"].split(",")[0].split()[-1]
            seconds[variant][row["case"], row["repeat"]] = float(row["seconds"])
    found: dict[str, dict[str, list[float]]] = {}
    for variant, turns in seconds.items():
        found[variant] = defaultdict(list)
        for (case, repeat), step in turns.items():
            found[variant][case].append(turns[BASE, repeat] / step)
    return found


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower, median, upper."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def main() -> None:
    """Draw and print."""
    found = ratios()
    rungs = [rung for rung in found["mort"] if rung != BASE]
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for offset, (variant, cases) in zip((-0.12, 0.12), found.items(), strict=True):
        for at, rung in enumerate(rungs):
            if rung not in cases:
                continue
            low, middle, high = quartiles(cases[rung])
            print(f"{LABELS[variant]:8} {rung:13} {middle:.3f} ({low:.3f} to {high:.3f})")
            axes.plot([at + offset] * 2, [low, high], color=COLOURS[variant], lw=2)
            label = LABELS[variant] if rung == "early" else None
            axes.plot(at + offset, middle, "o", color=COLOURS[variant], label=label)
    for at, rung in enumerate(rungs):
        if rung in JTOK:
            axes.hlines(JTOK[rung], at - 0.35, at + 0.35, color="#6d7278", lw=1, ls="--")
    axes.plot([], [], color="#6d7278", lw=1, ls="--", label="JTok, another machine and model")
    axes.axhline(1, color="#dcdad2", lw=1, zorder=0)
    axes.set_xticks(range(len(rungs)), rungs)
    axes.set_ylabel("throughput over no tables")
    axes.set_title("cpu-l on 4 processes, 2 cores: median and quartiles of 6 turns", fontsize=10)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(HERE / "ladder.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
