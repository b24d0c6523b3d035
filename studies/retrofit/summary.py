"""The tables of README.md: python studies/retrofit/summary.py, after `run.py tune` and after `run.py train`.

Differences of the held-out loss to the untouched model, with 95 % intervals by Student's t over the seeds.
"""

from __future__ import annotations

from collections import defaultdict

from run import ABOUT, BEFORE, HERE, MEASURED, RUNS, TUNED

from retoken.compare.verdict import plus_minus
from retoken.study.ledger import Ledger, Row


def rows_of(name: str) -> dict[str, list[Row]]:
    """The rows of a table by way."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in Ledger(HERE / name, ABOUT, MEASURED).rows:
        found[row["way"]].append(row)
    return found


def line(way: str, rows: list[Row], before: Row) -> str:
    """One way: what it moves and stores, what it gains and where, and what it costs."""

    def to_before(column: str) -> str:
        return plus_minus([float(row[column]) - float(before[column]) for row in rows])

    def mean(column: str) -> float:
        return sum(float(row[column]) for row in rows) / len(rows)

    numbers = (f"{mean('trained_params') / 1e6:.1f}M", f"{mean('stored_params') / 1e6:.0f}M")
    least = min(float(row["peak_memory_bytes"]) for row in rows)
    cost = (f"{mean('train_seconds'):.0f}", f"{least / 2**30:.1f}")
    cells = (way, str(len(rows)), *numbers, to_before("val_loss"), to_before("elsewhere_loss"), *cost)
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """Print the runs by what they gain, then the tuning runs."""
    runs = rows_of(RUNS)
    before = runs.pop(BEFORE)[0]
    heads = "way | seeds | trained | stored | in domain | elsewhere | seconds | memory, GiB"
    inside, outside = (float(before[name]) for name in ("val_loss", "elsewhere_loss"))
    print(f"before: {inside:.4f} in domain, {outside:.4f} elsewhere")
    print(f"\n| {heads} |\n|{'---|' * 8}")
    for way in sorted(runs, key=lambda way: float(runs[way][0]["val_loss"])):
        print(line(way, runs[way], before))
    print("\n| way | loss by rate, on a quarter of the tokens |\n|---|---|")
    for way, rows in rows_of(TUNED).items():
        losses = ", ".join(f"{float(row['rate']):g}: {float(row['val_loss']):.3f}" for row in rows)
        print(f"| {way} | {losses} |")


if __name__ == "__main__":
    main()
