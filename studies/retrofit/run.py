"""Tables for a pretrained model: what trains, what it gains where it trained, and what it loses elsewhere.

    retoken prepare --corpus default --tokenizer MODEL --out STORE
    python studies/retrofit/run.py --model MODEL --store STORE --elsewhere OTHER_STORE --work WORK

Every way trains on the same tokens in the same order. OTHER_STORE is text of another kind, prepared with the
same tokenizer. Runs that runs.csv beside this file has are not made again. WORK/NAME/model is a folder that
`retoken eval --tasks` takes; LoRA is merged into its backbone there.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import PreTrainedModel

from retoken.attach.rivals import BigramConfig
from retoken.checkpoint.folders import newest_path, read
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.data.tokens import TokenStore
from retoken.eval import evaluate_store, open_checkpoint
from retoken.study.ledger import Ledger
from retoken.train.config import TrainConfig
from retoken.train.loop import train
from retoken.train.result import TrainResult
from retoken.train.setup import load_model
from retoken.train.world import open_world

TABLE = Path(__file__).with_name("runs.csv")
MEASURED = ("tokens", "trained_params", "stored_params", "val_loss", "elsewhere_loss")
MEASURED += ("train_seconds", "tokens_per_second", "peak_memory_bytes")
SEEDS = (0, 1, 2)
LORA_RANK = 16
LAYERS = (0, 1, 2)
"""Layers with tables in "few tables": three of thirty store what the backbone does."""
Adapt = Callable[[PreTrainedModel], PreTrainedModel]


@dataclass(frozen=True, kw_only=True)
class Way:
    """How one model is trained."""

    modulator: ModulatorConfig | None = None
    trains: str = "all"
    lr: float = 1e-4
    """Peak rate of the backbone or of LoRA; tables have `table_lr` times it."""
    table_lr: float = 50.0
    lora: bool = False


WAYS = {
    "all": Way(),
    "lora": Way(lr=1e-3, lora=True),
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


def lora_config() -> peft.LoraConfig:
    """Low-rank adapters on every linear module of the decoder."""
    return peft.LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear")


def lora(model: PreTrainedModel) -> PreTrainedModel:
    """Those, by the PEFT library; nothing else trains."""
    torch.manual_seed(0)
    return peft.inject_adapter_in_model(lora_config(), model)  # pyright: ignore


def merged(model: str, run: Path) -> PreTrainedModel:
    """The backbone with a finished LoRA run's adapters worked into its matrices."""
    backbone = load_model(Path(model))
    adapted: Any = peft.get_peft_model(backbone, lora_config())
    newest = newest_path(run / "checkpoints")
    assert newest is not None, f"{run} has no checkpoint"
    tensors = read(newest).tensors().read_all()
    state = {
        f"base_model.model.{name}": value
        for name, value in tensors.items()
        if ".lora_" in name and not name.startswith("optimizer.")
    }
    missing = adapted.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys, missing.unexpected_keys[:1]
    return adapted.merge_and_unload()


def config_of(args: argparse.Namespace, name: str, seed: int) -> TrainConfig:
    """The run of one way."""
    way = WAYS[name]
    return TrainConfig(
        out=args.work / f"{name.replace(' ', '-')}-{seed}",
        data=args.store,
        model=args.model,
        variant=way.modulator.type if way.modulator else "baseline",
        modulator=way.modulator,
        trains=way.trains,  # pyright: ignore
        seed=seed,
        tokens=args.tokens,
        batch_size=8,
        context_length=args.context_length,
        micro_batch_size=4,
        lr=way.lr,
        table_lr_mult=way.table_lr,
        weight_decay=0.0,
        eval_tokens=args.eval_tokens,
        log_every=10,
        keep=1,
        compile="off",
        threads=args.threads,
    )


def elsewhere(args: argparse.Namespace, model: Path) -> float:
    """Held-out loss on the other store, in windows of the run's length."""
    with open_world("cpu", args.threads) as world:
        loaded = open_checkpoint(str(model))
        options = {"context_length": args.context_length, "max_tokens": args.eval_tokens}
        found = evaluate_store(loaded, args.elsewhere, world, **options)
    return found.val_loss


def run_one(args: argparse.Namespace, name: str, seed: int) -> tuple[dict[str, Any], TrainResult]:
    """Train one way on one seed, write its model folder, measure it."""
    config = config_of(args, name, seed)
    result = train(config, adapt=lora if WAYS[name].lora else None)
    folder = config.out / "model"
    if WAYS[name].lora and not folder.exists():
        merged(args.model, config.out).save_pretrained(folder)
        TokenStore.open(args.store).tokenizer().save_pretrained(folder)
    found = {"trained_params": trained_params(config), "elsewhere_loss": elsewhere(args, folder)}
    return {"way": name, "seed": seed, **found}, result


def trained_params(config: TrainConfig) -> int:
    """Parameters that the optimizer moved, by its state in the last checkpoint."""
    newest = newest_path(config.out / "checkpoints")
    assert newest is not None, f"{config.out} has no checkpoint"
    index, state = read(newest).tensors().index, "optimizer."
    moved = {key.removeprefix(state).rpartition(".")[0] for key in index if key.startswith(state)}
    return sum(torch.Size(index[name].spec.shape).numel() for name in moved if name in index)


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True)
    for name in ("--store", "--elsewhere", "--work"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--eval-tokens", type=int, default=65536)
    parser.add_argument("--context-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    args = parser.parse_args()
    ledger = Ledger(TABLE, ("way", "seed"), MEASURED)
    for seed in SEEDS:
        for name in args.ways:
            if not ledger.has({"way": name, "seed": seed}):
                start = time.perf_counter()
                found, result = run_one(args, name, seed)
                ledger.add(found, result)
                seconds = time.perf_counter() - start
                print(f"{name} {seed}: {result.val_loss:.4f}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
