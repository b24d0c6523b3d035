"""Matched baselines: uses of token-indexed rows at equal FLOPs and equal storage, and at equal time.

    retoken prepare --corpus default --tokenizer bpe --vocab-size 4096 --out STORES/default-4k
    retoken prepare --corpus default --vocab-size 8192 --out STORES/default-8k
    python studies/matched/run.py tune --stores STORES --work WORK --jobs 2
    python studies/matched/run.py time --stores STORES --work WORK
    python studies/matched/run.py train --stores STORES --work WORK --jobs 2

`tune` gives every variant the same small budget: four rates of its tables, at the smaller size, on a seed of
its own. `time` has steps of every variant beside the baseline's, in turns, on a machine that does nothing
else; `longer` trains as much longer as ReToken or MoRT takes, and `wider`, a backbone of the
next width, as long as MoRT does. `train` takes the best rates to both sizes and three seeds. Runs that
tune.csv, times.csv or runs.csv has are not made again; all are written after every run. summary.py makes the
tables of README.md.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from retoken import presets
from retoken.compare.variants import attached
from retoken.config import MoRTConfig, ReTokenConfig
from retoken.study.ledger import Ledger, Row
from retoken.train.bench import steps_over
from retoken.train.config import TrainConfig
from retoken.train.loop import train
from retoken.train.result import TrainResult

HERE = Path(__file__).parent
TUNED, TIMES, RUNS = HERE / "tune.csv", HERE / "times.csv", HERE / "runs.csv"
SIZES = {"llama-64x3": "default-4k", "llama-128x4": "default-8k"}
"""Backbones, and the token store of each."""
SEEDS, TUNING_SEED, TUNING_PRESET = (0, 1, 2), 100, "llama-64x3"
RATES = (1.0, 5.0, 25.0, 125.0)
"""Learning rates of tables over the backbone's."""
STORED = {
    1: "retoken additive retoken_bigram value per_layer bigram over_tokenized engram".split(),
    5: "mort mort_bigram retoken_bigram retoken_both additive_both".split()
    + "per_layer bigram over_tokenized engram".split(),
}
"""Variants by the numbers in their tables over ReToken's."""
WIDE = {("llama-64x3", 1): "llama-96x6", ("llama-64x3", 5): "llama-192x7", ("llama-128x4", 1): "llama-256x4"}
"""Plain backbones that store about as much as ReToken (1) and as MoRT (5) do, by more compute."""
WIDER = {"llama-64x3": "llama-80x3", "llama-128x4": "llama-160x4"}
"""Plain backbones of the next width, which train as long as MoRT does."""
LR, LR_WIDTH, TOKENS = 8e-3, 64, 800 * 16 * 128
"""Peak rate at that width, and over the width elsewhere (studies/scaling/rates.csv); tokens of a run."""
NO_TABLES = ("baseline", "wide", "longer", "wider")
LONGER = {1: "retoken", 5: "mort"}
"""Whose time `longer` and `wider` have, by size."""
TIMED = (*((size, name) for size, names in STORED.items() for name in names), (5, "wider"))
"""Sizes and variants whose steps are timed."""
STEPS, REPEATS = 10, 21
"""Of a turn, and turns."""
MEASURED = ("val_loss", "val_bits_per_byte", "tokens", "backbone_params", "table_params", "stored_params")
MEASURED += ("flops_per_token", "tokens_per_second", "train_seconds")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run."""

    preset: str
    size: int
    """Numbers in tables over ReToken's; of a plain backbone, whose storage it has; 0: its own."""
    variant: str
    rate: float
    """Learning rate of the tables over the backbone's; 0: no tables."""
    seed: int

    @property
    def name(self) -> str:
        """Its folder."""
        return "_".join(str(value) for value in asdict(self).values())


def ledger_of(path: Path) -> Ledger:
    """The table of runs at `path`."""
    return Ledger(path, [field.name for field in fields(Trial)], MEASURED)


def tuning() -> list[Trial]:
    """The budget of each variant; the baseline is there to say what a rate gains."""
    own: dict[str, Any] = {"preset": TUNING_PRESET, "seed": TUNING_SEED}
    found = [Trial(size=0, variant="baseline", rate=0.0, **own)]
    for size, names in STORED.items():
        found += [Trial(size=size, variant=name, rate=rate, **own) for name in names for rate in RATES]
    return found


def trials(tuned: list[Row]) -> list[Trial]:
    """All runs, seed by seed, so that what is there early can be compared."""
    best = best_rates(tuned)
    missing = [f"{n} at {s}" for s, names in STORED.items() for n in names if (s, n) not in best]
    if missing:
        raise SystemExit(f"{TUNED.name} has no {missing[0]}; accepted: a finished `tune` first")
    found = []
    for seed in SEEDS:
        for preset in SIZES:
            plain: dict[str, Any] = {"preset": preset, "rate": 0.0, "seed": seed}
            found.append(Trial(size=0, variant="baseline", **plain))
            found += [Trial(size=size, variant="wide", **plain) for of, size in WIDE if of == preset]
            found += [Trial(size=size, variant="longer", **plain) for size in STORED]
            found.append(Trial(size=5, variant="wider", **plain))
            for size, name in ((size, name) for size, names in STORED.items() for name in names):
                rate = best[size, name][1]
                found.append(Trial(preset=preset, size=size, variant=name, rate=rate, seed=seed))
    return found


def best_rates(tuned: list[Row]) -> dict[tuple[int, str], tuple[float, float]]:
    """The lowest loss by size and variant, and the rate it was at."""
    best: dict[tuple[int, str], tuple[float, float]] = {}
    for row in tuned:
        key, found = (int(row["size"]), row["variant"]), (float(row["val_loss"]), float(row["rate"]))
        best[key] = min(best.get(key, found), found)
    return best


def config_of(trial: Trial, stores: Path, work: Path, slower: float = 1.0) -> TrainConfig:
    """The run of a trial; `slower`: how much longer it is to train than the preset's recipe says."""
    name = "baseline" if trial.variant in NO_TABLES else trial.variant
    modulator = attached(name, ReTokenConfig(), MoRTConfig(), float(trial.size))
    preset = {"wide": WIDE.get((trial.preset, trial.size)), "wider": WIDER[trial.preset]}.get(trial.variant)
    found = presets.get(preset := preset or trial.preset)
    recipe = found.recipe.to_dict() | {"eval_tokens": 0, "eval_every": 0, "tokens": round(TOKENS * slower)}
    recipe["lr"] = LR * LR_WIDTH / found.backbone["hidden_size"]
    return TrainConfig(
        out=work / trial.name,
        data=stores / SIZES[trial.preset],
        preset=preset,
        variant=modulator.type if modulator else "baseline",
        modulator=modulator,
        seed=trial.seed,
        table_lr_mult=trial.rate or 1.0,
        log_every=50,
        compile="off",
        threads=1,
        **recipe,
    )


def times() -> Ledger:
    """How much longer a step takes than the baseline's."""
    return Ledger(TIMES, ("preset", "size", "variant"), ("slower", "slower_low", "slower_high"))


def time_steps(tuned: list[Row], stores: Path, work: Path, repeats: int) -> None:
    """Write what is missing of times.csv: each of `TIMED` at each size, in so many turns."""
    best, ledger = best_rates(tuned), times()
    for preset in SIZES:
        keys = [{"preset": preset, "size": size, "variant": name} for size, name in TIMED]
        missing = [key for key in keys if not ledger.has(key)]
        if not missing:
            continue
        plain = Trial(preset=preset, size=0, variant="baseline", rate=0.0, seed=SEEDS[0])
        configs = {"baseline": config_of(plain, stores, work)}
        for key in missing:
            rate = 0.0 if key["variant"] in NO_TABLES else best[key["size"], key["variant"]][1]
            trial = replace(plain, size=key["size"], variant=key["variant"], rate=rate)
            configs[trial.name] = config_of(trial, stores, work)
        spreads = steps_over(configs, "baseline", steps=STEPS, repeats=repeats)
        for key, spread in zip(missing, spreads.values(), strict=True):
            found = {"slower": spread.median, "slower_low": spread.low, "slower_high": spread.high}
            ledger.add(key | found, None)
            print(*key.values(), *(f"{value:.3f}" for value in found.values()), flush=True)


def slower(trial: Trial, known: list[Row]) -> float | None:
    """How much longer a trial is to train than the preset's recipe says; None: not known yet."""

    def of(variant: str) -> float | None:
        key = (trial.preset, str(trial.size), variant)
        steps = {(row["preset"], row["size"], row["variant"]): float(row["slower"]) for row in known}
        return steps.get(key)

    if trial.variant not in ("longer", "wider"):
        return 1.0
    paid, own = of(LONGER[trial.size]), of("wider") if trial.variant == "wider" else 1.0
    return paid / own if paid and own else None


def run_one(job: tuple[Trial, Path, Path, float]) -> tuple[Trial, TrainResult]:
    """Train a trial, or read its result back."""
    trial, stores, work, longer = job
    return trial, train(config_of(trial, stores, work, longer))


def make(pool: Any, wanted: Iterable[Trial], ledger: Ledger, stores: Path, work: Path) -> None:
    """Run what is missing of `wanted`, but for what waits for `time`."""
    missing, known = [trial for trial in wanted if not ledger.has(asdict(trial))], times().rows
    jobs = [(trial, stores, work, longer) for trial in missing if (longer := slower(trial, known))]
    for number, (trial, result) in enumerate(pool.imap(run_one, jobs), 1):
        ledger.add(asdict(trial), result)
        print(f"{number}/{len(jobs)} {trial.name}: {result.val_loss:.4f}", flush=True)
    if len(jobs) < len(missing):
        print(f"{len(missing) - len(jobs)} runs wait for `run.py time`", flush=True)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("tune", "time", "train"))
    parser.add_argument("--stores", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=REPEATS, help="turns of `time`")
    args = parser.parse_args()
    if args.what == "time":
        return time_steps(ledger_of(TUNED).rows, args.stores, args.work, args.repeats)
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        if args.what == "tune":
            make(pool, tuning(), ledger_of(TUNED), args.stores, args.work)
        else:
            make(pool, trials(ledger_of(TUNED).rows), ledger_of(RUNS), args.stores, args.work)


if __name__ == "__main__":
    main()
