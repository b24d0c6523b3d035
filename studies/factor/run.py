"""The factor 1 / sqrt(2 N_l) of MoRT's residual (Eq. 5, Fig. 9): trained with it and without it.

    retoken prepare --corpus default --tokenizer bpe --vocab-size 4096 --out STORES/default-4k
    python studies/factor/run.py --stores STORES --work WORK --jobs 2

"without": s starts at sqrt(2 N_l), so that the product is at first what Eq. 5 without the factor has; s
learns at the same rate. Runs that runs.csv beside this file has are not made again; stds.csv has the standard
deviation of the residual stream, mean over depths, in the course of each run. Both are written after every
run, and drawn by plot.py.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import multiprocessing
import statistics
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from retoken import presets
from retoken.config import MoRTConfig
from retoken.study.ledger import Ledger
from retoken.train.config import TrainConfig
from retoken.train.loop import train
from retoken.train.result import TrainResult

HERE = Path(__file__).parent
TABLE, STDS = HERE / "runs.csv", HERE / "stds.csv"
MEASURED = ("val_loss", "val_bits_per_byte", "tokens", "backbone_params", "table_params", "train_seconds")
PRESETS = {"cpu-xs": 3}
"""Backbones, and their layers."""
STORE, SEEDS, VARIANTS = "default-4k", (0, 1, 2), ("baseline", "with", "without")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the study."""

    preset: str
    factor: str
    """ "with" or "without"; "baseline": no tables."""
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return "_".join(str(value) for value in asdict(self).values())


def all_trials() -> list[Trial]:
    """Seed by seed, so that what is there early can be compared."""
    return [
        Trial(preset=preset, factor=factor, seed=seed)
        for preset in PRESETS
        for seed in SEEDS
        for factor in VARIANTS
    ]


def run_one(job: tuple[Trial, Path, Path]) -> tuple[Trial, TrainResult, Path]:
    """Train a trial, or read its result back."""
    trial, stores, work = job
    start = {"with": 1.0, "without": math.sqrt(2 * PRESETS[trial.preset])}.get(trial.factor)
    recipe = presets.get(trial.preset).recipe.to_dict() | {"eval_tokens": 65_536, "eval_every": 100}
    config = TrainConfig(
        out=work / trial.name,
        data=stores / STORE,
        preset=trial.preset,
        variant="mort" if start else "baseline",
        modulator=MoRTConfig(init_scale=start) if start else None,
        seed=trial.seed,
        log_every=50,
        compile="off",
        threads=1,
        **(recipe | {"tokens": 800 * 16 * 128}),
    )
    return trial, train(config), config.out


def stds_of(folder: Path) -> list[tuple[int, float]]:
    """(step, standard deviation, mean over what stands behind the layers) in the course of a run."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], _mean(row["hidden_std"])) for row in lines if row["kind"] == "modulators"]


def _mean(std: dict[str, float]) -> float:
    return statistics.fmean(value for depth, value in std.items() if depth != "0")


def add_stds(trial: Trial, folder: Path) -> None:
    """Append those of one run."""
    new = not STDS.exists()
    with STDS.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow((*asdict(trial), "step", "hidden_std"))
        writer.writerows((*asdict(trial).values(), step, f"{std:.5f}") for step, std in stds_of(folder))


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stores", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    ledger = Ledger(TABLE, [field.name for field in fields(Trial)], MEASURED)
    jobs: Any = [(t, args.stores, args.work) for t in all_trials() if not ledger.has(asdict(t))]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for number, (trial, result, folder) in enumerate(pool.imap(run_one, jobs), 1):
            ledger.add(asdict(trial), result)
            add_stds(trial, folder)
            print(f"{number}/{len(jobs)} {trial.name}: {result.val_loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
