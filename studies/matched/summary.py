"""The tables of README.md: python studies/matched/summary.py, after `run.py tune` and after `run.py train`.

Of the tuning runs, the loss at each variant's best rate. Of the others, differences to the baseline of the
same size and seed, with 95 % intervals by Student's t over the seeds.
"""

from __future__ import annotations

from collections import defaultdict

from run import RUNS, SIZES, TUNED, best_rates, ledger_of, times

from retoken.compare.verdict import plus_minus, title
from retoken.study.ledger import Row

CANDIDATES = ((5, "additive_both"), (5, "retoken_both"))
BARS = ((1, "retoken"), (5, "mort"), (5, "bigram"))
"""What the recipe has to beat at both sizes with the spread left out. Rows by token alone have one size."""

Runs = dict[tuple[str, int, str], dict[int, Row]]
"""(preset, size, variant) -> seed -> its row."""


def read() -> Runs:
    """All runs by what they are."""
    found: Runs = defaultdict(dict)
    for row in ledger_of(RUNS).rows:
        found[row["preset"], int(row["size"]), row["variant"]][int(row["seed"])] = row
    return found


def paired(ours: dict[int, Row], base: dict[int, Row]) -> list[float]:
    """Differences of the loss to the baseline of the same seed."""
    return [float(ours[s]["val_loss"]) - float(base[s]["val_loss"]) for s in sorted(ours.keys() & base)]


def mean(rows: dict[int, Row], name: str) -> float:
    """Mean of a column over seeds."""
    return sum(float(row[name]) for row in rows.values()) / len(rows)


def step_times() -> dict[tuple[str, int, str], str]:
    """What a step takes over the baseline's, where it was timed."""
    return {
        (row["preset"], int(row["size"]), row["variant"]): f"{float(row['slower']):.2f}"
        for row in times().rows
    }


def line(key: tuple[str, int, str], runs: Runs, steps: dict[tuple[str, int, str], str]) -> str:
    """One row of the table."""
    preset, size, variant = key
    ours, base = runs[key], runs[preset, 0, "baseline"]
    losses = ", ".join(f"{float(ours[seed]['val_loss']):.3f}" for seed in sorted(ours))
    stored, flops = mean(ours, "stored_params"), mean(ours, "flops_per_token") / mean(base, "flops_per_token")
    cells = [
        *(preset, f"{size}x" if size else "-", title(variant), losses),
        "-" if variant == "baseline" else plus_minus(paired(ours, base)),
        *(f"{stored / 1e6:.2f}M", f"{flops:.2f}", steps.get(key, "-")),
    ]
    return "| " + " | ".join(cells) + " |"


def against(runs: Runs) -> list[str]:
    """Each candidate's differences to what it has to beat, of the same size and seed."""
    found = []
    for preset, (size, name) in ((p, c) for p in SIZES for c in CANDIDATES if runs[p, *c]):
        ours = runs[preset, size, name]
        cells = [plus_minus(paired(ours, runs[preset, *bar])) for bar in BARS]
        found.append(f"| {' | '.join((preset, title(name), *cells))} |")
    return found


def tuned() -> list[str]:
    """The tuning runs: each variant at its best rate, by size and loss."""
    best = best_rates(ledger_of(TUNED).rows)
    return [
        f"| {f'{size}x' if size else '-'} | {title(name)} | {loss:.3f} | {rate:g} |"
        for (size, name), (loss, rate) in sorted(best.items(), key=lambda each: (each[0][0], each[1]))
    ]


def main() -> None:
    """Print what is there, by size and loss."""
    print("\n".join(["| tables | variant | held-out loss | rate |", "|---|---|---|---|", *tuned()]))
    runs = read()
    if not runs:
        return
    heads = "backbone | tables | variant | held-out loss, seeds | to the baseline | stored | FLOPs | step"
    print(f"\n| {heads} |\n|{'---|' * 8}")
    steps = step_times()
    for key in sorted(runs, key=lambda key: (key[0], key[1], mean(runs[key], "val_loss"))):
        print(line(key, runs, steps))
    heads = " | ".join(f"to {title(name)}, {size}x" for size, name in BARS)
    print("\n".join([f"\n| backbone | variant, 5x | {heads} |", "|---|---|---|---|---|", *against(runs)]))


if __name__ == "__main__":
    main()
