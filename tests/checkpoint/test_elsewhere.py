"""A run that stops on some processes and goes on with others: the same data, the same course."""

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import retoken
from retoken.checkpoint import load_model, read
from retoken.data.config import PrepareConfig
from retoken.data.prepare import prepare
from retoken.eval import open_checkpoint
from retoken.testing import assert_close, run_distributed
from retoken.train import TrainConfig
from retoken.train.loop import train
from retoken.train.tables import TableOptions

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


def run_parts(config: TrainConfig, parts: list[tuple[int, int, dict]]) -> None:
    """[(processes, until which step, options of this part)], one after the other."""
    for size, until, options in parts:
        values = config.to_dict()
        tables = values["tables"] | options.get("tables", {})
        values |= options | {"tables": tables}
        found = run_distributed(part, size, values, until) if size > 1 else [train_part(values, until)]
        assert all(said == str(STEPS) or f"of {STEPS}" in said for said in found), found


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    train_lines = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in train_lines] == list(range(1, STEPS + 1)), "a step is told once"
    return [line["loss"] for line in train_lines]


def laid(layout: str, exchange: str = "auto", **more) -> dict:
    return {"tables": {"layout": layout, "exchange": exchange} | more}


FIVE = retoken.MoRTConfig(num_modulators=5)
MOVES = {
    "2, 1, 4, then FSDP2": (
        {"variant": "retoken", "modulator": retoken.ReTokenConfig()},
        [(2, 4, {}), (1, 7, {}), (4, STEPS, {"data_parallel": "fsdp"})],
    ),
    "over layouts and options": (
        {"variant": "mort", "modulator": FIVE},
        [(2, 3, laid("V")), (4, 6, laid("VxE", "mixed")), (2, 9, laid("E", "routed")), (1, STEPS, {})],
    ),
    "row-wise, host memory, two copies": (
        {"variant": "mort", "modulator": FIVE, "tables": TableOptions(optimizer="row_wise")},
        [(1, 4, {"tables": {"memory": "host"}}), (4, 8, laid("E", ranks=2)), (2, STEPS, laid("V"))],
    ),
    "dense": (
        {"variant": "mort", "modulator": FIVE, "tables": TableOptions(optimizer="adamw")},
        [(2, 4, laid("replicated")), (4, 8, laid("V")), (2, STEPS, {"data_parallel": "fsdp"})],
    ),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_run_moves_between_processes_and_layouts(store, tmp_path, name):
    """Tables divided, whole, in host memory; the backbone copied, then divided: as on one process."""
    options, parts = MOVES[name]
    whole, moved = (config_of(store, tmp_path / who, **options) for who in ("whole", "moved"))
    train(whole)
    run_parts(moved, parts)
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


KINDS = {
    "rows, bfloat16": TableOptions(dtype="bfloat16"),
    "row-wise, bfloat16, host": TableOptions(optimizer="row_wise", dtype="bfloat16", memory="host"),
    "rows, float32": TableOptions(),
    "dense": TableOptions(optimizer="adamw"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("processes", [1, 2])
def test_tables_of_every_kind_resume_bit_equal(store, tmp_path, name, processes):
    """Stopped, with saves that the other run does not make: moments, waiting decay, drawn bits go on."""
    tables = KINDS[name]
    if processes > 1 and tables.memory == "host":
        tables = dataclasses.replace(tables, memory="device")
    options = {"variant": "mort", "tables": tables, "table_weight_decay": 0.1}
    whole, stopped = (config_of(store, tmp_path / who, **options) for who in ("whole", "stopped"))
    run_parts(whole, [(processes, STEPS, {})])
    run_parts(stopped, [(processes, 5, {}), (processes, STEPS, {"checkpoint_every": 2})])
    last = [read(c.out / "checkpoints" / f"step-{STEPS:06d}").tensors().read_all() for c in (whole, stopped)]
    assert last[0].keys() == last[1].keys()
    different = [key for key in last[0] if not torch.equal(last[0][key], last[1][key])]
    assert different == []
    assert losses(whole.out) == losses(stopped.out)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_who_reads_a_model_reads_the_decay_that_waits(store, tmp_path, dtype):
    """By hand: a row has (1 - lr_t decay) pending for each step since it was settled."""
    tables = TableOptions(dtype="bfloat16" if dtype == torch.bfloat16 else "float32")
    config = config_of(store, tmp_path / "run", variant="mort", tables=tables, table_weight_decay=0.5)
    train(config)
    path = config.out / "checkpoints" / f"step-{STEPS:06d}"
    raw = read(path).tensors().read_all()
    for layer, loaded, exported in zip(
        range(3),
        retoken.modulators(load_model(path)).values(),
        retoken.modulators(AutoModelForCausalLM.from_pretrained(config.out / "model", dtype=dtype)).values(),
        strict=True,
    ):
        key = f"retoken.layers.{layer}.table"
        waited = raw[f"optimizer.{key}.log_decay"] - raw[f"optimizer.{key}.settled"]
        assert 0 < (waited != 0).sum() < len(waited), "some rows wait, some do not"
        expected = raw[key].double() * waited.exp()[:, None, None]
        assert_close(key, expected, exported.table.weight, rounding=dtype, units=2)
        assert exported.table.weight.dtype == raw[key].dtype == dtype
        assert torch.equal(exported.table.weight.float(), loaded.table.weight)
