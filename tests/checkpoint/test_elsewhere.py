"""A run that stops on some processes and goes on with others: the same data, the same course."""

import json
import random
from pathlib import Path

import pytest
import torch

import retoken
from retoken.checkpoint import load_model, read
from retoken.data.config import PrepareConfig
from retoken.data.prepare import prepare
from retoken.eval import open_checkpoint
from retoken.testing import assert_close, run_distributed
from retoken.train import TrainConfig
from retoken.train.loop import train

STEPS = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token store in which every second word follows from the one before."""
    root, chance = tmp_path_factory.mktemp("data"), random.Random(0)
    words = "the a cat dog house runs sees under over tree blue red and or but when then small".split()
    (root / "corpus").mkdir()
    for number in range(40):
        firsts = [chance.randrange(len(words)) for _ in range(200)]
        pairs = [f"{words[first]} {words[(first * 5 + 3) % len(words)]}" for first in firsts]
        (root / "corpus" / f"{number}.txt").write_text(" ".join(pairs))
    options = {"vocab_size": 300, "val_fraction": 0.1, "workers": 1}
    prepare(PrepareConfig(corpus=str(root / "corpus"), out=root / "store", **options))
    return root / "store"


def config_of(store: Path, out: Path, **options) -> TrainConfig:
    values = {"steps": STEPS, "batch_size": 4, "context_length": 16, "lr": 3e-3, "log_every": 1, "threads": 1}
    values |= {"eval_tokens": 400, "keep": 3, "preset": "cpu-xs", "data": store, "out": out}
    return TrainConfig(**(values | options))


def part(rank: int, size: int, values: dict, until: int) -> str:
    """One process of a part of a run: it stops behind step `until`, or comes to the end."""
    return train_part(values, until)


def train_part(values: dict, until: int) -> str:
    def stop(event):
        if event["kind"] == "train" and event["step"] == until:
            signal_self()

    try:
        return str(train(TrainConfig.from_dict(values), on_event=stop).steps)
    except KeyboardInterrupt as stopped:
        return str(stopped)


def signal_self() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGTERM)


def run_parts(config: TrainConfig, parts: list[tuple[int, int, str]]) -> None:
    """[(processes, until which step, how they share the backbone)], one after the other."""
    for size, until, share in parts:
        values = config.to_dict() | {"data_parallel": share}
        found = run_distributed(part, size, values, until) if size > 1 else [train_part(values, until)]
        assert all(said == str(STEPS) or f"of {STEPS}" in said for said in found), found


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train_lines] == list(range(1, STEPS + 1)), "a step is told once"
    return [line["loss"] for line in train_lines]


@pytest.mark.parametrize("variant", ["retoken", "mort"])
def test_a_run_moves_from_2_to_1_to_4_processes(store, tmp_path, variant):
    """Tables divided over two, whole on one, divided over four; the backbone copied, then divided (FSDP2)."""
    modulator = {"retoken": retoken.ReTokenConfig(), "mort": retoken.MoRTConfig()}[variant]
    options = {"variant": variant, "modulator": modulator}
    whole, moved = (config_of(store, tmp_path / name, **options) for name in ("whole", "moved"))
    train(whole)
    run_parts(moved, [(2, 4, "ddp"), (1, 7, "ddp"), (4, STEPS, "fsdp")])
    # Sums are taken in another order, so the last digits differ; another batch order would show at once.
    assert losses(moved.out) == pytest.approx(losses(whole.out), rel=2e-4)
    last = [read(c.out / "checkpoints" / f"step-{STEPS:06d}").tensors().read_all() for c in (whole, moved)]
    keys = [{key for key in tensors if not key.startswith("rng.")} for tensors in last]
    assert keys[0] == keys[1]
    assert (moved.out / "model" / "config.json").read_bytes() == (
        whole.out / "model" / "config.json"
    ).read_bytes()
    # The four processes' checkpoint, their exported model and the run folder are one model.
    models = [
        load_model(moved.out / "checkpoints" / f"step-{STEPS:06d}"),
        open_checkpoint(str(moved.out / "model")).model,
    ]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for name, value in open_checkpoint(str(whole.out)).model.state_dict().items():
        assert_close(name, value, states[0][name], units=40_000)
