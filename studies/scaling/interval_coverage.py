"""Do the intervals hold what was planted? `python studies/scaling/interval_coverage.py` writes coverage.csv.

200 draws of each scenario take about four minutes of one core.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

import numpy as np

from retoken.scaling.coverage import Coverage, Scenario, cover
from retoken.scaling.laws import Cost
from retoken.scaling.planted import CHINCHILLA, KAPLAN, POWER, SATURATING, decade
from retoken.scaling.synthetic import Noise

HERE = Path(__file__).parent


def scenarios() -> list[Scenario]:
    """What is planted."""
    usual, tails = Noise(run=0.003, pair=0.003), Noise(run=0.003, pair=0.003, outliers=0.05)
    leaning = Noise(run=0.003, pair=0.003, seed=0.003)
    counted = Cost(scale=60.0, power=0.88, counted=True)
    gains, falling = {"mort": SATURATING}, {"mort": POWER}
    return [
        Scenario(name="kaplan", law=KAPLAN, gains=gains, design=decade(), noise=usual),
        Scenario(name="kaplan, power gain", law=KAPLAN, gains=falling, design=decade(), noise=usual),
        Scenario(name="kaplan, 5 % outliers", law=KAPLAN, gains=gains, design=decade(), noise=tails),
        Scenario(name="kaplan, one seed", law=KAPLAN, gains=gains, design=decade(seeds=1), noise=usual),
        Scenario(
            name="kaplan, counted FLOPs", law=KAPLAN, gains=gains, design=decade(cost=counted), noise=usual
        ),
        Scenario(name="kaplan, seeds that lean", law=KAPLAN, gains=gains, design=decade(), noise=leaning),
        Scenario(name="chinchilla", law=CHINCHILLA, gains=gains, design=decade(), noise=usual),
    ]


def write(path: Path, found: list[Coverage]) -> None:
    """One row a quantity."""
    names = [*Coverage.__slots__, "share"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for each in found:
            cells = [getattr(each, name) for name in names]
            writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells])


def main() -> None:
    """Measure, write, and print shares by scenario, method and kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--out", type=Path, default=HERE / "coverage.csv")
    args = parser.parse_args()
    found = [row for scenario in scenarios() for row in cover(scenario, draws=args.draws)]
    write(args.out, found)
    grouped: dict[tuple[str, str, str], list[Coverage]] = defaultdict(list)
    for row in found:
        grouped[row.scenario, row.method, row.kind].append(row)
    for key, rows in grouped.items():
        shares = [row.share for row in rows]
        lowest = min(rows, key=lambda row: row.share)
        print(f"{', '.join(key):44} mean {np.mean(shares):.3f}, least {lowest.share:.3f} ({lowest.quantity})")


if __name__ == "__main__":
    main()
