"""Tables for a pretrained model: what trains, what it gains where it trained, and what it loses elsewhere.

    retoken prepare --corpus default --tokenizer MODEL --out STORE
    retoken prepare --corpus builtin --tokenizer MODEL --out OTHER_STORE
    python studies/retrofit/run.py tune --model MODEL --store STORE --elsewhere OTHER_STORE --work WORK
    python studies/retrofit/run.py train --model MODEL --store STORE --elsewhere OTHER_STORE --work WORK

Every way trains on the same tokens in the same order. OTHER_STORE is text of another kind, prepared with the
same tokenizer. `tune` gives every way three rates, on a seed of its own and a quarter of the tokens; `train`
takes the best to three seeds. Runs that tune.csv or runs.csv has are not made again. WORK/NAME/model is a
folder that `retoken eval --tasks` takes; LoRA is merged into its backbone there.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import torch
from transformers import PreTrainedModel

from retoken.attach.rivals import BigramConfig
from retoken.checkpoint.folders import newest_path, read
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.data.tokens import TokenStore
from retoken.eval import evaluate_store, open_checkpoint
from retoken.study.ledger import Ledger, Row
from retoken.train.config import TrainConfig
from retoken.train.loop import train
from retoken.train.setup import load_model
from retoken.train.world import open_world

HERE = Path(__file__).parent
TUNED, RUNS = "tune.csv", "runs.csv"
ABOUT = ("way", "rate", "seed")
MEASURED = ("tokens", "trained_params", "stored_params", "val_loss", "elsewhere_loss")
MEASURED += ("train_seconds", "tokens_per_second", "peak_memory_bytes")
SEEDS, TUNING_SEED = (0, 1, 2), 100
RATES = (0.3, 1.0, 3.0)
"""Times the way's own learning rates."""
BEFORE = "before"
LAYERS = (0, 1, 2)
"""Layers with tables where not all have some: three of thirty."""
Adapt = Callable[[PreTrainedModel], PreTrainedModel]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How one model is trained."""

    modulator: ModulatorConfig | None = None
    trains: str = "all"
    lr: float = 1e-4
    """Peak rate of the backbone or of LoRA; tables have `table_lr` times it."""
    table_lr: float = 50.0
    lora: int = 0
    """Rank of adapters; 0: there are none."""


WAYS = {
    "all": Way(),
    "lora": Way(lr=1e-3, lora=16),
    "wide lora": Way(lr=1e-3, lora=278),
    "retoken tables": Way(modulator=ReTokenConfig(init_scale=0.0), trains="attached", lr=1e-3, table_lr=5.0),
    "few retoken tables": Way(
        modulator=ReTokenConfig(init_scale=0.0, layers=LAYERS), trains="attached", lr=1e-3, table_lr=5.0
    ),
    "mort tables": Way(
        modulator=MoRTConfig(init_scale=0.0, num_modulators=2, top_k=1, layers=LAYERS),
        trains="attached",
        lr=1e-3,
        table_lr=5.0,
    ),
    "bigram tables": Way(modulator=BigramConfig(size=0.1), trains="attached", lr=1e-3, table_lr=5.0),
    "all and tables": Way(modulator=ReTokenConfig(init_scale=0.0, layers=LAYERS)),
}
"""Name -> how."""


def lora_config(rank: int) -> peft.LoraConfig:
    """Low-rank adapters on every linear module of the decoder."""
    return peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")


def lora(rank: int, model: PreTrainedModel) -> PreTrainedModel:
    """Those, by the PEFT library; nothing else trains."""
    torch.manual_seed(0)
    return peft.inject_adapter_in_model(lora_config(rank), model)  # pyright: ignore


def merged(model: str, run: Path, rank: int) -> PreTrainedModel:
    """The backbone with a finished LoRA run's adapters worked into its matrices."""
    backbone = load_model(Path(model))
    adapted: Any = peft.get_peft_model(backbone, lora_config(rank))
    newest = newest_path(run / "checkpoints")
    assert newest is not None, f"{run} has no checkpoint"
    tensors = read(newest).tensors().read_all()
    state = {
        f"base_model.model.{name}": value
        for name, value in tensors.items()
        if ".lora_" in name and not name.startswith("optimizer.")
    }
    wrong = adapted.load_state_dict(state, strict=False)
    wrong = [*wrong.unexpected_keys, *(name for name in wrong.missing_keys if ".lora_" in name)]
    assert state and not wrong, f"{run}: adapters are other ones: {wrong[:1]}"
    return adapted.merge_and_unload()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run."""

    way: str
    rate: float
    """Times the way's learning rates."""
    seed: int


def config_of(args: argparse.Namespace, trial: Trial) -> TrainConfig:
    """The run of one way."""
    way = WAYS[trial.way]
    return TrainConfig(
        out=args.work / f"{trial.way.replace(' ', '-')}-{trial.rate:g}-{trial.seed}",
        data=args.store,
        model=args.model,
        variant=way.modulator.type if way.modulator else "baseline",
        modulator=way.modulator,
        trains=way.trains,  # pyright: ignore
        seed=trial.seed,
        tokens=args.tokens if trial.seed in SEEDS else args.tokens // 4,
        batch_size=args.batch_size,
        context_length=args.context_length,
        micro_batch_size=args.micro_batch_size,
        dtype=args.dtype,
        lr=way.lr * trial.rate,
        table_lr_mult=way.table_lr,
        weight_decay=0.0,
        eval_tokens=args.eval_tokens,
        log_every=10,
        keep=1,
        compile="off",
        threads=args.threads,
    )


def held_out(args: argparse.Namespace, model: Path, *stores: Path) -> list[float]:
    """Held-out loss of a model folder on each store, in windows of the runs' length."""
    with open_world("auto", args.threads) as world:
        loaded = open_checkpoint(str(model))
        loaded.model.to(world.device)  # pyright: ignore
        options = {"context_length": args.context_length, "max_tokens": args.eval_tokens}
        return [evaluate_store(loaded, store, world, **options).val_loss for store in stores]


def before(args: argparse.Namespace) -> Any:
    """The pretrained model, measured as the runs are."""
    inside, outside = held_out(args, Path(args.model), args.store, args.elsewhere)
    stored = sum(parameter.numel() for parameter in load_model(Path(args.model)).parameters())
    values = dict.fromkeys(MEASURED, 0) | {"stored_params": stored}
    return SimpleNamespace(**values | {"val_loss": inside, "elsewhere_loss": outside})


def run_one(job: tuple[argparse.Namespace, Trial]) -> tuple[Trial, Any]:
    """Train one way on one seed, write its model folder, measure it."""
    args, trial = job
    config, rank = config_of(args, trial), WAYS[trial.way].lora
    result = train(config, adapt=functools.partial(lora, rank) if rank else None)
    folder = config.out / "model"
    if rank and not folder.exists():
        merged(args.model, config.out, rank).save_pretrained(folder)
        TokenStore.open(args.store).tokenizer().save_pretrained(folder)
    measured = {name: getattr(result, name, None) for name in MEASURED}
    measured["trained_params"] = trained_params(config)
    measured["val_loss"], measured["elsewhere_loss"] = held_out(args, folder, args.store, args.elsewhere)
    if args.lean and trial.seed != SEEDS[0]:
        shutil.rmtree(config.out)
    return trial, SimpleNamespace(**measured)


def trained_params(config: TrainConfig) -> int:
    """Parameters that the optimizer moved, by its state in the last checkpoint."""
    newest = newest_path(config.out / "checkpoints")
    assert newest is not None, f"{config.out} has no checkpoint"
    index, state = read(newest).tensors().index, "optimizer."
    moved = {key.removeprefix(state).rpartition(".")[0] for key in index if key.startswith(state)}
    return sum(torch.Size(index[name].spec.shape).numel() for name in moved if name in index)


def trials(what: str, ways: list[str], seeds: list[int], tuned: list[Row]) -> list[Trial]:
    """Every way by every rate; or the best of them, seed by seed."""
    if what == "tune":
        return [Trial(way=way, rate=rate, seed=TUNING_SEED) for way in ways for rate in RATES]
    best: dict[str, tuple[float, float]] = {}
    for row in tuned:
        found = (float(row["val_loss"]), float(row["rate"]))
        best[row["way"]] = min(best.get(row["way"], found), found)
    missing = [way for way in ways if way not in best]
    if missing:
        raise SystemExit(f"{TUNED} has no {missing[0]}; accepted: a finished `tune` first")
    return [Trial(way=way, rate=best[way][1], seed=seed) for seed in seeds for way in ways]


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("tune", "train"))
    parser.add_argument("--model", required=True)
    for name in ("--store", "--elsewhere", "--work"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--tables", type=Path, default=HERE, help="folder of tune.csv and runs.csv")
    parser.add_argument("--tokens", type=int, default=1 << 20)
    parser.add_argument("--eval-tokens", type=int, default=65536)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--micro-batch-size", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
    parser.add_argument("--lean", action="store_true", help="keep the folders of the first seed only")
    return parser.parse_args()


def main() -> None:
    """Run what is missing."""
    args = arguments()
    ledger = Ledger(args.tables / (TUNED if args.what == "tune" else RUNS), ABOUT, MEASURED)
    untouched = {"way": BEFORE, "rate": 0.0, "seed": 0}
    if args.what == "train" and not ledger.has(untouched):
        ledger.add(untouched, before(args))
    found = trials(args.what, args.ways, args.seeds, Ledger(args.tables / TUNED, ABOUT, MEASURED).rows)
    jobs = [(args, trial) for trial in found if not ledger.has(asdict(trial))]
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        for trial, result in pool.imap_unordered(run_one, jobs):
            ledger.add(asdict(trial), result)
            seconds = time.perf_counter() - start
            print(f"{asdict(trial)}: {result.val_loss:.4f}, after {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
