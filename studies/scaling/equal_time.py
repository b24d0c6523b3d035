"""Baselines that train for as long as ReToken and MoRT, whose steps are timed beside theirs: equal_time.csv.

    python studies/scaling/equal_time.py --data STORE --work WORK --jobs 2

Times first, in turns, which wants a machine that does nothing else; then trains. The plan has such baselines
too, of fewer tokens: it goes by speeds that its runs had beside other work. Runs that equal_time.csv has are
not made again, and variants it has are not timed again.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retoken.study.cell import Cell
from retoken.study.ledger import Ledger
from retoken.study.planfile import Plan
from retoken.study.table import read_rows
from retoken.train.bench import steps_over
from retoken.train.loop import train
from retoken.train.result import TrainResult
from retoken.train.timing import Spread

HERE = Path(__file__).parent
TABLE = HERE / "equal_time.csv"
SIZES = {2e12: "2.00e12-llama-32x2", 6.3e12: "6.30e12-llama-64x3"}
"""Budgets, and the best size of each."""
VARIANTS = ("retoken", "mort-eta30-rho1")
ABOUT = ("budget", "variant", "seed")
MEASURED = ("slower", "slower_low", "slower_high", "tokens", "val_loss", "train_seconds")
STEPS, REPEATS = 30, 21
"""Of a turn, and turns."""


def slower(plan: Plan, cells: dict[str, Cell], data: Path, size: str) -> dict[str, Spread]:
    """Seconds of a step over the baseline's, by variant."""
    names = ("baseline", *VARIANTS)
    runs = {name: cells[f"dense-{name}-{size}-seed0"] for name in names}
    with TemporaryDirectory() as folder:
        places: dict[str, Any] = {"data": data, "out": Path(folder) / "run", "threads": 1}
        configs = {name: cell.train_config(plan.study, **places) for name, cell in runs.items()}
        return steps_over(configs, "baseline", steps=STEPS, repeats=REPEATS)


def trials(plan: Plan, data: Path, ledger: Ledger) -> Iterator[tuple[dict[str, Any], Cell]]:
    """Runs that are missing: what they are about, with the times, and the baseline of so many steps."""
    cells = {cell.id: cell for cell in plan.cells}
    for budget, size in SIZES.items():
        missing = [v for v in VARIANTS if not ledger.has({"budget": budget, "variant": v, "seed": 0})]
        for variant, spread in (slower(plan, cells, data, size) if missing else {}).items():
            print(
                f"{size} {variant}: {spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})", flush=True
            )
            times = {"slower": spread.median, "slower_low": spread.low, "slower_high": spread.high}
            base = cells[f"dense-baseline-{size}-seed0"]
            for seed in plan.study.control_seeds:
                cell = replace(base, seed=seed, steps=round(base.steps * spread.median))
                yield {"budget": budget, "variant": variant, "seed": seed, **times}, cell


def run_one(job: tuple[dict[str, Any], Cell, Plan, Path, Path]) -> tuple[dict[str, Any], TrainResult]:
    """Train one baseline."""
    about, cell, plan, data, work = job
    out = work / f"{about['variant']}-{about['budget']:.2e}-{about['seed']}"
    return about, train(cell.train_config(plan.study, data=data, out=out, threads=1))


def main() -> None:
    """Time, then train what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    plan, _ = Plan.read(HERE / "plan.json").advanced(read_rows(HERE / "runs.csv"))
    ledger = Ledger(TABLE, ABOUT, MEASURED)
    jobs = [(*found, plan, args.data, args.work) for found in list(trials(plan, args.data, ledger))]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for about, result in pool.imap(run_one, jobs):
            ledger.add(about, result)
            print(
                f"{about['variant']} {about['budget']:.3g} {about['seed']}: {result.val_loss:.4f}", flush=True
            )


if __name__ == "__main__":
    main()
