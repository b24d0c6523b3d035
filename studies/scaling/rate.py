"""The learning rate of the study: the best at three widths, and whether one over the width fits them.

    python studies/scaling/rate.py --data STORE --work WORK --jobs 2

Runs that rates.csv beside this file has are not run again; it is written after every run.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
from pathlib import Path

from retoken.checkpoint.files import atomic_file
from retoken.study.config import StudyConfig
from retoken.train.config import TrainConfig
from retoken.train.loop import train

TABLE = Path(__file__).with_name("rates.csv")
COLUMNS = ("preset", "lr", "steps", "loss")
TRIALS = {
    "llama-64x4": (800, (4e-3, 8e-3, 1.6e-2)),
    "llama-32x3": (1200, (8e-3, 1.6e-2, 3.2e-2)),
    "llama-96x5": (500, (2.7e-3, 5.3e-3, 1.07e-2)),
}
"""{backbone: (steps, rates)}; 2048 tokens a step."""


def run_one(job: tuple[str, int, float, Path, Path]) -> dict[str, str]:
    """Train one backbone at one rate, with the study's recipe, on its first seed."""
    preset, steps, lr, data, work = job
    study = StudyConfig()
    result = train(
        TrainConfig(
            out=work / f"{preset}-{lr:g}",
            data=data,
            preset=preset,
            steps=steps,
            batch_size=study.batch_size,
            context_length=study.context_length,
            lr=lr,
            min_lr_ratio=study.min_lr_ratio,
            warmup_ratio=study.warmup_ratio,
            weight_decay=study.weight_decay,
            log_every=50,
            compile="off",
            device="cpu",
            threads=1,
        )
    )
    return {"preset": preset, "lr": repr(lr), "steps": str(steps), "loss": f"{result.val_loss:.4f}"}


def known() -> list[dict[str, str]]:
    """The runs of the table."""
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def write(rows: list[dict[str, str]]) -> None:
    """All runs so far."""
    order = list(TRIALS)
    with atomic_file(TABLE) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: (order.index(row["preset"]), float(row["lr"]))))


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    rows = known()
    done = {(row["preset"], float(row["lr"])) for row in rows}
    trials = [(preset, steps, lr) for preset, (steps, rates) in TRIALS.items() for lr in rates]
    jobs = [(*trial, args.data, args.work) for trial in trials if (trial[0], trial[2]) not in done]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for row in pool.imap_unordered(run_one, jobs):
            rows.append(row)
            write(rows)
            print(row, flush=True)


if __name__ == "__main__":
    main()
