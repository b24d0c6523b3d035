"""The defaults study: start values, table learning rate and table weight decay, swept on real text.

    retoken prepare --corpus default --tokenizer bpe --vocab-size 4096 --out STORES/default-4k
    python studies/defaults/run.py --stores STORES --work WORK --jobs 2

Runs that runs.csv beside this file has are not run again (`--again`: they are); it is written after every
run. plot.py draws it.
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import asdict, fields
from pathlib import Path

from grid import SIZES, STAGES, Trial, all_trials

from retoken.study.ledger import Ledger
from retoken.train.config import TrainConfig
from retoken.train.loop import train
from retoken.train.result import TrainResult
from retoken.train.tables import TableOptions

TABLE = Path(__file__).with_name("runs.csv")
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
    ledger = Ledger(TABLE, [field.name for field in fields(Trial)], MEASURED)
    trials = [trial for stage in args.stages for trial in all_trials(stage)]
    jobs = [(t, args.stores, args.work) for t in trials if args.again or not ledger.has(asdict(t))]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for number, (trial, result) in enumerate(pool.imap(run_one, jobs), 1):
            ledger.add(asdict(trial), result)
            print(f"{number}/{len(jobs)} {trial.stage} {trial.name}: {result.val_loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
