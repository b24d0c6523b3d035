"""The defaults study: start values, table learning rate and table weight decay, swept on real text.

    retoken prepare --corpus default --tokenizer bpe --vocab-size 4096 --out STORES/default-4k
    python studies/defaults/run.py --stores STORES --work WORK --jobs 2

Runs that runs.csv beside this file has are not run again (`--again`: they are); it is written after every
run. plot.py draws it.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from grid import SIZES, STAGES, Trial, all_trials

from retoken.train.config import TrainConfig
from retoken.train.loop import train
from retoken.train.result import TrainResult
from retoken.train.tables import TableOptions

TABLE = Path(__file__).with_name("runs.csv")
SORTED = ("stage", "size", "variant", "norm", "seed")
MEASURED = ("val_loss", "val_bits_per_byte", "tokens", "backbone_params", "table_params", "tokens_per_second")


def run_config(trial: Trial, stores: Path, work: Path) -> TrainConfig:
    """The training run of a trial."""
    size = SIZES[trial.size]
    return TrainConfig(
        out=work / trial.name,
        data=stores / f"default-{size.vocab_size // 1024}k",
        preset=size.preset,
        variant=trial.variant,
        modulator=trial.modulator(),
        seed=trial.seed,
        steps=size.steps,
        batch_size=size.batch_size,
        context_length=size.context_length,
        lr=trial.lr,
        table_lr_mult=trial.table_lr_mult,
        table_weight_decay=trial.table_weight_decay,
        tables=TableOptions(optimizer=trial.table_optimizer or "adamw"),  # pyright: ignore
        eval_tokens=131072,
        log_every=50,
        compile="off",
        threads=1,
    )


def run_one(job: tuple[Trial, Path, Path]) -> tuple[Trial, TrainResult]:
    """Train a trial, or read its result back."""
    trial, stores, work = job
    return trial, train(run_config(trial, stores, work))


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row of the table is about, as the file says it."""
    return tuple(str(row[field.name]) for field in fields(Trial))


def read_table() -> dict[tuple[str, ...], dict[str, Any]]:
    """The runs that are known."""
    if not TABLE.exists():
        return {}
    with TABLE.open(newline="") as file:
        return {key(row): row for row in csv.DictReader(file)}


def write_table(known: dict[tuple[str, ...], dict[str, Any]]) -> None:
    """All runs so far as CSV, atomically."""
    rows = sorted(known.values(), key=lambda row: [str(row[k]) for k in SORTED])
    new = TABLE.with_suffix(".new")
    with new.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(new, TABLE)


def main() -> None:
    """Run the stages asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stores", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--again", action="store_true")
    args = parser.parse_args()
    known = read_table()
    trials = [trial for stage in args.stages for trial in all_trials(stage)]
    jobs = [(t, args.stores, args.work) for t in trials if args.again or key(asdict(t)) not in known]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for number, (trial, result) in enumerate(pool.imap(run_one, jobs), 1):
            row = asdict(trial) | {name: getattr(result, name) for name in MEASURED}
            known[key(row)] = row
            write_table(known)
            print(f"{number}/{len(jobs)} {trial.stage} {trial.name}: {result.val_loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
