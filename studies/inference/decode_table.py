"""The tables of README.md from the turns: `python studies/inference/decode_table.py decode_*.csv`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from retoken.bench.decode.turns import Ratio, Reading, summarize


def read(path: Path) -> list[Reading]:
    """All runs of a CSV that `retoken bench decode --csv` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Reading(
                variant=row["variant"],
                placement=row["placement"],
                batch=int(row["batch"]),
                prompt=int(row["prompt"]),
                repeat=int(row["repeat"]),
                ttft=float(row["ttft"]),
                tpot=float(row["tpot"]),
                load=float(row["load"]),
            )
            for row in csv.DictReader(file)
        ]


def ratio(of: Ratio) -> str:
    """Median and its interval."""
    return f"{of.median:.3f} ({of.low:.3f} to {of.high:.3f})"


def main() -> None:
    """Print a table a file."""
    for name in sys.argv[1:]:
        readings = read(Path(name))
        loads = sorted(reading.load for reading in readings)
        turns = len({reading.repeat for reading in readings})
        print(f"\n{Path(name).name}: {turns} turns, load {loads[0]} to {loads[-1]}\n")
        print("| batch | prompt | variant | rows | TPOT over plain | TTFT over plain | TPOT, ms | TTFT, ms |")
        print("|---|---|---|---|---|---|---|---|")
        for s in summarize(readings):
            tpot, ttft = ("", "") if s.variant == "baseline" else (ratio(s.tpot), ratio(s.ttft))
            print(
                f"| {s.batch} | {s.prompt} | {s.variant} | {s.placement} | {tpot} | {ttft} "
                f"| {s.tpot_ms:.1f} ± {s.tpot_std_ms:.1f} | {s.ttft_ms:.0f} |"
            )


if __name__ == "__main__":
    main()
