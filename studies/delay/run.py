"""The delay study (Eq. 16, Fig. 5): MoRT whose residual lands 0, 1 or 2 layers after its router.

    retoken prepare --corpus default --vocab-size 8192 --out STORES/default-8k
    python studies/delay/run.py --stores STORES --work WORK --jobs 2

Runs that runs.csv beside this file has are not made again; it is written after every run. plot.py draws it.
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from retoken import presets
from retoken.config import MoRTConfig
from retoken.study.ledger import Ledger
from retoken.train.config import TrainConfig
from retoken.train.loop import train
from retoken.train.result import TrainResult

TABLE = Path(__file__).with_name("runs.csv")
MEASURED = ("val_loss", "val_bits_per_byte", "tokens", "backbone_params", "table_params", "tokens_per_second")
SIZES = {"cpu-xs": "default-4k", "cpu-s": "default-8k"}
"""Presets, with their own recipes, and the token store of each."""
SEEDS = (0, 1, 2)
DELAYS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the study."""

    preset: str
    variant: str
    router_input: str
    delay: int
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return "_".join(str(value) for value in asdict(self).values() if value != "")


def all_trials() -> list[Trial]:
    """Every delay with both router inputs, and the plain backbone, on each seed."""
    found = []
    for preset in SIZES:
        for seed in SEEDS:
            found.append(Trial(preset=preset, variant="baseline", router_input="", delay=0, seed=seed))
            found += [
                Trial(preset=preset, variant="mort", router_input=router, delay=delay, seed=seed)
                for router in ("post_attention", "block_input")
                for delay in DELAYS
            ]
    return found


def run_one(job: tuple[Trial, Path, Path]) -> tuple[Trial, TrainResult]:
    """Train a trial, or read its result back."""
    trial, stores, work = job
    modulator: Any = None
    if trial.variant == "mort":
        modulator = MoRTConfig(router_input=trial.router_input, injection_delay=trial.delay)  # pyright: ignore
    recipe = presets.get(trial.preset).recipe.to_dict() | {"eval_tokens": 131072, "eval_every": 0}
    config = TrainConfig(
        out=work / trial.name,
        data=stores / SIZES[trial.preset],
        preset=trial.preset,
        variant=trial.variant,  # pyright: ignore
        modulator=modulator,
        seed=trial.seed,
        log_every=50,
        compile="off",
        threads=1,
        **recipe,
    )
    return trial, train(config)


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
    jobs = [(t, args.stores, args.work) for t in all_trials() if not ledger.has(asdict(t))]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for number, (trial, result) in enumerate(pool.imap(run_one, jobs), 1):
            ledger.add(asdict(trial), result)
            print(f"{number}/{len(jobs)} {trial.name}: {result.val_loss:.4f}", flush=True)


if __name__ == "__main__":
    main()
