"""Does the recipe stay ahead of cheaper tables that train as long as it does?

    python studies/matched/equal_time.py --stores STORES --work WORK --jobs 2

After `run.py time`. Tables of the recipe's size on as many tokens as the time of the recipe's run pays for,
by the steps of times.csv, at the rate that tuning gave them. Writes equal_time.csv and prints each one's loss
less the recipe's of the same seed (runs.csv), with 95 % intervals by Student's t over the seeds.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from run import MEASURED, RUNS, SEEDS, SIZES, TUNED, Trial, best_rates, ledger_of, run_one, times

from retoken.compare.verdict import plus_minus, title
from retoken.study.ledger import Ledger, Row

CSV = Path(__file__).parent / "equal_time.csv"
RECIPE, SIZE = "additive_both", 5
CHEAPER = ("bigram", "retoken_both", "engram")
KEY = ("preset", "size", "variant", "seed")


def trials() -> Iterator[tuple[Trial, float]]:
    """All runs, and how much longer than the preset's recipe says each is to train."""
    step = {(row["preset"], int(row["size"]), row["variant"]): float(row["slower"]) for row in times().rows}
    best = best_rates(ledger_of(TUNED).rows)
    for preset in SIZES:
        for variant in CHEAPER:
            longer = step[preset, SIZE, RECIPE] / step[preset, SIZE, variant]
            for seed in SEEDS:
                rate = best[SIZE, variant][1]
                yield Trial(preset=preset, size=SIZE, variant=variant, rate=rate, seed=seed), longer


def show(rows: list[Row]) -> None:
    """Print each variant beside the recipe of the same seeds."""
    recipe = {tuple(row[k] for k in KEY): float(row["val_loss"]) for row in ledger_of(RUNS).rows}
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[row["preset"], row["variant"]].append(row)
    print("| backbone | variant | tokens, M | held-out loss, seeds | less the recipe's |")
    print("|---|---|---|---|---|")
    for (preset, variant), own in found.items():
        own.sort(key=lambda row: row["seed"])
        less = [float(r["val_loss"]) - recipe[preset, r["size"], RECIPE, r["seed"]] for r in own]
        losses = ", ".join(f"{float(r['val_loss']):.3f}" for r in own)
        tokens = f"{float(own[0]['tokens']) / 1e6:.2f}"
        print(f"| {preset} | {title(variant)} | {tokens} | {losses} | {plus_minus(less)} |")


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stores", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    given = parser.parse_args()
    ledger = Ledger(CSV, list(Trial.__dataclass_fields__), MEASURED)
    missing = [(trial, longer) for trial, longer in trials() if not ledger.has(asdict(trial))]
    jobs = [(trial, given.stores, given.work, longer) for trial, longer in missing]
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for trial, result in pool.imap(run_one, jobs):
            ledger.add(asdict(trial), result)
            print(f"{trial.name}: {result.val_loss:.4f}", flush=True)
    show(ledger.rows)


if __name__ == "__main__":
    main()
