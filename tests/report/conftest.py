"""A made-up comparison folder, for the layout of the page alone: every number in it is invented."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from retoken.compare.folder import CompareFolder, RunKey
from retoken.inspect.inspection import Band, Inspection, Measured, Near, Pruning, Row, Training
from retoken.inspect.routing import LayerLoad, PartLoad
from retoken.inspect.tables import Scale, Strength

VOCAB = 600
FINAL = {"baseline": 4.9, "retoken": 4.7, "mort": 4.6}
TABLES = {"baseline": 0, "retoken": 4_000_000, "mort": 20_000_000}


def write_comparison(
    path: Path, *, variants=("baseline", "retoken", "mort"), seeds=(0, 1), done=None, final=None
) -> CompareFolder:
    """An invented comparison; `done` limits which of the planned runs have finished."""
    folder = CompareFolder(path)
    keys = [RunKey(name, seed) for seed in seeds for name in variants]
    recipe = {
        "preset": "invented",
        "train": {
            "tokens": 1_600_000,
            "batch_size": 16,
            "context_length": 256,
            "lr": 1e-3,
            "schedule": "cosine",
        },
        "modulators": {
            "retoken": {"type": "retoken", "norm": "rms"},
            "mort": {"type": "mort", "num_modulators": 5, "top_k": 3},
        },
        "data": {"train_tokens": 1_000_000, "vocab_size": VOCAB},
    }
    folder.claim(
        recipe,
        keys,
        command="retoken compare invented --seeds 0 1 --out out/invented",
        environment=_environment(),
        counts={},
    )
    for key in keys if done is None else done:
        write_run(folder.run(RunKey(*key)), *key, final=(final or FINAL)[key[0]])
    return folder


def write_run(folder: Path, name: str, seed: int, *, final: float, layers: int = 6, steps: int = 200) -> None:
    """An invented run folder in the trainer's format."""
    folder.mkdir(parents=True)
    random = np.random.default_rng([seed, len(name)])
    final = final + 0.004 * random.standard_normal()
    speed = {"baseline": 9000.0, "retoken": 8600.0, "mort": 7100.0}[name]
    lines = []
    for step in range(steps + 1):
        tokens = step * 8000
        head = {"step": step, "tokens": tokens, "seconds": tokens / speed, "flops": tokens * 2e7}
        loss = final + 4.1 * math.exp(-step / 22) + 0.5 * (1 - step / steps)
        if step and step % 2 == 0:
            noise = 0.05 * random.standard_normal()
            lines.append({"kind": "train", **head, "loss": loss + noise - 0.1, "lr": 1e-3, "grad_norm": 1.0})
        if step and step % 20 == 0:
            lines.append({"kind": "eval", **head, "val_loss": loss, "val_bits_per_byte": loss / 3.1})
        if step % 20 == 0:
            lines.append({"kind": "modulators", **head, **_probe(name, layers, step / steps, seed)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    _write_tokens(folder, random, final)
    _write_samples(folder, name)
    result = {
        "name": name, "seed": seed, "val_loss": final, "val_bits_per_byte": final / 3.1,
        "tokens": 1_600_000, "val_tokens": 60_000,
        "backbone_params": 2_900_000, "table_params": TABLES[name],
        "stored_params": 2_900_000 + TABLES[name] + 900,
        "flops_per_token": 2e7 * (1 + TABLES[name] / 4e9),
        "train_seconds": 1.6e6 / speed, "tokens_per_second": speed,
        "peak_memory_bytes": 700 * 2**20 + 16 * TABLES[name], "start_memory_bytes": 400 * 2**20,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))


def _probe(name: str, layers: int, progress: float, seed: int) -> dict:
    depth = np.linspace(0, 1, layers)
    shape = {
        "baseline": None,
        "retoken": 1 - 0.7 * progress * np.sin(np.pi * depth),
        "mort": 1 + progress * (depth - 0.6),
    }[name]
    std = {
        str(i): 0.3 + (0.5 + progress) * i * (1.15 if name == "mort" else 1) + 0.02 * seed
        for i in range(layers + 1)
    }
    scales = {} if shape is None else {str(i): float(value) for i, value in enumerate(shape)}
    load = (
        {str(i): (np.array([5, 4, 4, 3, 4]) / 20).tolist() for i in range(layers)} if name == "mort" else {}
    )
    return {"scale_mean": scales, "scale_abs_mean": scales, "load": load, "hidden_std": std}


def _write_tokens(folder: Path, random: np.random.Generator, final: float) -> None:
    count = np.round(8000 / (1 + np.arange(VOCAB)) ** 0.9)
    each = (
        final
        + np.sin(np.arange(VOCAB))
        + (final - 4.9) * np.linspace(0, 4, VOCAB)
        + 0.1 * random.standard_normal(VOCAB)
    )
    save_file({"nll": each * count, "count": count}, folder / "token_loss.safetensors")
    vocabulary = {piece: i for i, piece in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    vocabulary |= {f"Ġinvented{i}": i for i in range(len(vocabulary), VOCAB)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    (folder / "model").mkdir()
    tokenizer.save(str(folder / "model" / "tokenizer.json"))


def _write_samples(folder: Path, name: str) -> None:
    text = "and this text was invented for the layout of the page, so that its lines break as real ones do."
    samples = [
        {"prompt": f"The {which} invented prompt, which begins here",
         "truth": " and went on like this in the document",
         "greedy": f"{name} {text}", "sampled": f"{name} drew: {text}", "temperature": 0.8}
        for which in ("first", "second", "third")
    ]  # fmt: skip
    (folder / "samples.json").write_text(json.dumps({"format_version": 1, "samples": samples}))


def _environment() -> dict:
    return {"cpu": "Invented CPU", "cores": 2, "memory_bytes": 24 * 2**30, "gpu": None, "system": "Linux 6.1",
            "python": "3.11.2", "packages": {"retoken": "0.1.0", "torch": "2.13.0"}}  # fmt: skip


@pytest.fixture
def invented(tmp_path: Path) -> Callable[..., CompareFolder]:
    """An invented comparison in an empty folder; options of `write_comparison`."""
    return lambda **options: write_comparison(tmp_path / "invented", **options)


@pytest.fixture(scope="session")
def invented_once(tmp_path_factory: pytest.TempPathFactory) -> CompareFolder:
    """An invented comparison of all variants over two seeds, to be looked at only."""
    return write_comparison(tmp_path_factory.mktemp("invented") / "comparison")


def invented_inspection(variant: str = "mort", *, measured: bool = True, layers: int = 5) -> Inspection:
    """An invented inspection: every number in it is made up."""
    labels = ("1–10", "11–100", "101–600", "never") if measured else ("all tokens",)
    config = {"type": variant, "num_modulators": 4, "top_k": 2} if variant == "mort" else {"type": variant}
    strengths = {
        layer: tuple(
            Strength(norm=2.0 - 0.3 * place, distance=0.4 + 0.01 * layer, shared=0.5 / (1 + place))
            for place in range(len(labels))
        )
        for layer in range(layers)
    }
    return Inspection(
        checkpoint="invented/model",
        modulator=config,
        depth=layers,
        vocab_size=VOCAB,
        width=64,
        scales={layer: Scale(mean=1 - 0.05 * layer, abs_mean=1.0, std=0.1) for layer in range(layers)},
        bands=tuple(Band(label=label, tokens=10, share=0.25 if measured else None) for label in labels),
        strengths=strengths,
        training=Training(source="an invented state", never_tokens=17, never_rows=0.2),
        near=tuple(
            Near(token=f"␣{i}", near=tuple((f"<{j}>", 0.9 - 0.1 * j) for j in range(4))) for i in range(3)
        ),
        measured=_measured(variant, layers, len(labels)) if measured else None,
    )


def _measured(variant: str, layers: int, bands: int) -> Measured:
    load = LayerLoad(
        shares=(0.4, 0.3, 0.2, 0.1), effective=3.6, weighing=1.9,
        by_band=((0.4, 0.3, 0.2, 0.1),) * (bands - 1) + (None,),
        effective_by_band=(3.6,) * (bands - 1) + (None,),
        by_part={
            name: PartLoad(positions=9, shares=(0.1, 0.2, 0.3, 0.4), effective=3.6, apart=apart)
            for name, apart in (("word", 0.02), ("digits", 0.4))
        },
    )  # fmt: skip
    rows = tuple(
        Row(token=f"<i{i}>", count=9 - i, first=0.1 * i - 0.2, path=1.0 + i, real=1.5 * i) for i in range(6)
    )
    settings = ["as trained", "without rows", *(["without 1/√(2N)"] if variant == "mort" else [])]
    return Measured(
        store="invented/store", looked_tokens=8000, measured_tokens=8192, loss=4.5, without_all=2.25,
        without_layer={layer: 0.1 + 0.05 * layer for layer in range(layers)},
        without_band=(0.5, 0.4, 0.3, 0.0),
        hidden_std={name: {d: 0.3 * d for d in range(layers + 1)} for name in settings},
        loads=dict.fromkeys(range(layers), load) if variant == "mort" else {},
        first_total=0.01, path_total=2.2, checked=rows, first_rank=0.21, path_rank=0.93, worth_most=rows,
        pruning=Pruning(
            shares=(1.0, 0.9, 0.75, 0.5, 0.0),
            increases={name: (0.0, 0.01, 0.1, 0.4, 2.25) for name in ("importance", "frequency", "random")},
            allowed=((0.001, 31, 0.0009), (0.01, 66, 0.0098)),
        ),
    )  # fmt: skip


@pytest.fixture(scope="session")
def invented_look() -> Callable[..., Inspection]:
    """An invented inspection; options of `invented_inspection`."""
    return invented_inspection
