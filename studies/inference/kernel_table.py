"""The table of kernels of README.md: `python studies/inference/kernel_table.py`, of lookup.csv.

Rows that no cache holds; microseconds of a call, medians over turns, and medians of the ratios within a turn.
"""

from __future__ import annotations

import csv
import statistics
from collections import defaultdict
from pathlib import Path

Turns = dict[str, dict[int, float]]
"""{contender: {repeat: seconds a call}}."""
OTHERS = ("naive", "eager", "torch.compile")
COUNTS = (1, 16, 1024)


def read() -> tuple[dict[tuple[str, int], Turns], dict[tuple[str, int], float]]:
    """Turns by setting and tokens of a call, and the bytes of a call's distinct rows."""
    turns: dict[tuple[str, int], Turns] = defaultdict(lambda: defaultdict(dict))
    size: dict[tuple[str, int], float] = {}
    with Path(__file__).with_name("lookup.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["ids"] == "text":
                continue
            key = row["setting"], int(row["tokens"])
            moved = float(row["row_bytes"])
            streams = row["contender"] in ("read", "copy")
            value = moved / float(row["seconds"]) if streams else float(row["seconds"])
            turns[key][row["contender"]][int(row["repeat"])] = value
            if row["contender"] == "fused":
                size[key] = moved
    return turns, size


def line(setting: str, turns: dict[tuple[str, int], Turns], size: dict[tuple[str, int], float]) -> str:
    """One kernel: its time, what the others take over it, and the least time its rows take from memory."""
    groups = [(turns[setting, count], size[setting, count]) for count in COUNTS]
    cells = [" / ".join(f"{1e6 * _median(own['fused']):.3g}" for own, _ in groups)]
    for other in OTHERS:
        cells.append(" / ".join(_ratio(own[other], own["fused"]) for own, _ in groups))
    cells.append(" / ".join(_bound(own, moved) for own, moved in groups))
    return f"| {setting} | {' | '.join(cells)} |"


def _median(values: dict[int, float]) -> float:
    return statistics.median(values.values())


def _ratio(other: dict[int, float], ours: dict[int, float]) -> str:
    return f"{statistics.median(other[n] / ours[n] for n in ours):.2f}" if other else "-"


def _bound(own: Turns, moved: float) -> str:
    if not moved:
        return "-"
    fastest = statistics.median(max(own["read"][n], own["copy"][n]) for n in own["read"])
    return f"{1e6 * moved / fastest:.2g}"


def main() -> None:
    """Print it."""
    turns, size = read()
    print("| | fused, µs | naive | eager | torch.compile | bound, µs |\n|---|---|---|---|---|---|")
    for setting in dict.fromkeys(setting for setting, _ in turns):
        if setting.split(",")[0] not in ("gather", "gemma"):
            print(line(setting, turns, size))


if __name__ == "__main__":
    main()
