"""How far off the isocompute parabola is where the law is known and there is no noise.

`python studies/scaling/parabola.py` writes parabola.csv: planted Kaplan constants, losses without noise,
sizes laid about each budget's best in several ways; the parabola's exponents and optima beside the joint
fit's.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from retoken.scaling.fit import fit
from retoken.scaling.isocompute import isocompute
from retoken.scaling.laws import PAPER_COST, Law
from retoken.scaling.planted import CHINCHILLA, KAPLAN
from retoken.scaling.runs import joined
from retoken.scaling.synthetic import Design, Noise, draw

HERE = Path(__file__).parent
LAWS: dict[str, Law] = {"kaplan": KAPLAN, "chinchilla": CHINCHILLA}
LAYOUTS = {
    "even, 4x each way": (0.25, 4.0, 0.0),
    "even, 16x each way": (1 / 16, 16.0, 0.0),
    "off by 2x": (0.5, 8.0, 0.0),
    "off by 2x the other way": (0.125, 2.0, 0.0),
    "drifting from 2x small to 2x large": (0.25, 4.0, 0.3),
}
"""Lowest and highest size over the best, and how the whole drifts from budget to budget (power of C)."""
COLUMNS = (
    *(
        "law",
        "sizes",
        "method",
        "size_exponent",
        "planted_size_exponent",
        "loss_exponent",
        "planted_loss_exponent",
    ),
    *("params_off", "loss_off", "params_off_at_100_c", "loss_off_at_100_c"),
)


def rows(name: str, layout: str) -> list[dict[str, object]]:
    """The parabola and the joint fit on one layout."""
    law, (low, high, drift) = LAWS[name], LAYOUTS[layout]
    budgets = np.geomspace(1e14, 1e15, 5)
    parts = []
    for budget in budgets:
        moved = (budget / np.sqrt(budgets[0] * budgets[-1])) ** (2 * drift)
        spans = tuple(float(span) for span in moved * np.geomspace(low, high, 7))
        design = Design(budgets=[float(budget)], spans=spans, seeds=1)
        parts.append(draw(law, {}, design, Noise(run=0, pair=0), 0))
    runs = joined(parts)
    parabola, joint = isocompute(runs), fit(runs, name).law
    planted = [law.optimal_params(budgets), law.optimal_loss(budgets)]
    far = 100 * budgets[-1]
    found = []
    for method, params, loss in (
        ("parabola", parabola.optimal_params, parabola.optimal_loss),
        (
            "joint fit",
            lambda C: joint.optimal_params(C, PAPER_COST),
            lambda C: joint.optimal_loss(C, PAPER_COST),
        ),
    ):
        found.append(
            {
                "law": name, "sizes": layout, "method": method,
                "size_exponent": slope(budgets, params(budgets)),
                "planted_size_exponent": slope(budgets, planted[0]),
                "loss_exponent": -slope(budgets, loss(budgets)),
                "planted_loss_exponent": -slope(budgets, planted[1]),
                "params_off": float(np.abs(params(budgets) / planted[0] - 1).max()),
                "loss_off": float(np.abs(loss(budgets) / planted[1] - 1).max()),
                "params_off_at_100_c": float(params(far) / law.optimal_params(far) - 1),
                "loss_off_at_100_c": float(loss(far) / law.optimal_loss(far) - 1),
            }
        )  # fmt: skip
    return found


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Exponent of a power law by least squares in logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def main() -> None:
    """Compute, write and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "parabola.csv")
    args = parser.parse_args()
    found = [row for name in LAWS for layout in LAYOUTS for row in rows(name, layout)]
    with args.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(
            {key: f"{round(v, 9) + 0.0:.6g}" if isinstance(v, float) else v for key, v in row.items()}
            for row in found
        )
    for row in found:
        print(
            f"{row['law']:11}{row['sizes']:36}{row['method']:10} size exponent {row['size_exponent']:.4f} "
            f"(planted {row['planted_size_exponent']:.4f}), loss exponent {row['loss_exponent']:.5f} "
            f"(planted {row['planted_loss_exponent']:.5f}), N_c* off {row['params_off']:.1%}, "
            f"at 100 C {row['params_off_at_100_c']:+.1%}, L* {row['loss_off_at_100_c']:+.2%}"
        )


if __name__ == "__main__":
    main()
