"""Draws ladder.csv: `python studies/scale/plot.py` writes ladder.svg and prints the ladder's medians."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from retoken.bench.climb import JTOK
from retoken.bench.ladder import BASE
from retoken.bench.turns import Turn, Turns

HERE = Path(__file__).parent
COLOURS = {"retoken": "#2a6fb0", "mort": "#c2571a"}
LABELS = {"retoken": "ReToken", "mort": "MoRT"}


def ladders() -> dict[str, Turns]:
    """{variant: the turns of its ladder}."""
    found: dict[str, list[Turn]] = {}
    with (HERE / "ladder.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            variant = row["part"].split(",")[0].split()[-1]
            numbers = {name: float(row[name]) for name in ("seconds", "cpu", "sent", "load")}
            turn = Turn(case=row["case"], repeat=int(row["repeat"]), steps=int(row["steps"]), **numbers)
            found.setdefault(variant, []).append(turn)
    return {variant: Turns(turns) for variant, turns in found.items()}


def main() -> None:
    """Draw and print."""
    plt.rcParams["svg.hashsalt"] = "ladder"  # the same file for the same numbers
    found = ladders()
    rungs = [rung for rung in dict.fromkeys(turn.case for turn in found["mort"].turns) if rung != BASE]
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for offset, (variant, turns) in zip((-0.12, 0.12), found.items(), strict=True):
        for at, rung in enumerate(rungs):
            if not turns.seconds(rung):
                continue
            speed = turns.speed(rung, BASE)
            print(f"{LABELS[variant]:8} {rung:13} {speed.median:.3f} ({speed.low:.3f} to {speed.high:.3f})")
            axes.plot([at + offset] * 2, [speed.low, speed.high], color=COLOURS[variant], lw=2)
            label = LABELS[variant] if rung == "early" else None
            axes.plot(at + offset, speed.median, "o", color=COLOURS[variant], label=label)
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
