"""Reading one RUN folder: what the trainer left there, checked, and nothing else."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retoken.checkpoint.files import read_json
from retoken.errors import CheckpointError

RESULT_FILE = "result.json"
METRICS_FILE = "metrics.jsonl"
TOKEN_LOSS_FILE = "token_loss.safetensors"
SAMPLES_FILE = "samples.json"

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One line of ``results.json``: the outcome of one run.

    Every field is required; ``val_bits_per_byte`` is None where held-out text has no bytes, and
    ``peak_memory_bytes`` is the resident peak of the run's own process.
    """

    name: str
    seed: int
    val_loss: float
    val_bits_per_byte: float | None
    tokens: int
    backbone_params: int
    table_params: int
    stored_params: int
    flops_per_token: float
    train_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A loss over the run: one value per logged step (``[S]`` arrays of equal length)."""

    step: Array
    tokens: Array
    seconds: Array
    flops: Array
    loss: Array
    bits_per_byte: Array
    """NaN where the line did not carry it (training steps)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What the modulators looked like at one step, by layer or depth."""

    step: int
    tokens: int
    scale_mean: Mapping[int, float]
    """Mean of ``s^l`` along the features (Figs. 6-7)."""
    load: Mapping[int, tuple[float, ...]]
    """Share of tokens that chose each of the E modulators of a layer; empty without a router."""
    hidden_std: Mapping[int, float]
    """Standard deviation of the hidden state behind each block (Fig. 9)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A finished run and everything the report draws from it."""

    folder: Path
    record: RunRecord
    start_memory_bytes: int
    """Resident size before the model was built; 0 where unknown."""
    val_tokens: int
    """Held-out tokens predicted; 0 where unknown."""
    train: Curve
    evals: Curve
    probes: tuple[Probe, ...]

    def token_loss(self) -> tuple[Array, Array] | None:
        """Summed held-out loss in nats and count, both ``[V]``; None where the run kept none."""
        return read_token_loss(self.folder)

    def samples(self) -> list[dict[str, Any]]:
        """Generated texts (see ``compare.samples``); empty where the run wrote none."""
        path = self.folder / SAMPLES_FILE
        return read_json(path)["samples"] if path.exists() else []


def is_finished(folder: Path) -> bool:
    """Whether the trainer wrote its result, which it does last."""
    return (folder / RESULT_FILE).is_file()


def read_record(folder: Path, *, name: str, seed: int) -> RunRecord:
    """The run's outcome, under the name and seed that the comparison gave it.

    Raises:
        CheckpointError: A field is missing or not a finite number.
    """
    path = folder / RESULT_FILE
    found = read_json(path)
    values: dict[str, Any] = {}
    for field in fields(RunRecord):
        if field.name in ("name", "seed"):
            continue
        value = found.get(field.name)
        if value is None and field.name == "val_bits_per_byte" and field.name in found:
            values[field.name] = None
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise CheckpointError(f"{path}: {field.name} is {value!r}; expected a finite number")
        values[field.name] = int(value) if field.type is int else float(value)
    return RunRecord(name=name, seed=seed, **values)


def read_run(folder: Path, *, name: str, seed: int) -> Run:
    """A finished run folder.

    Raises:
        CheckpointError: A file of it is missing, truncated or not what the trainer writes.
    """
    record = read_record(folder, name=name, seed=seed)
    result = read_json(folder / RESULT_FILE)
    lines = _read_metrics(folder / METRICS_FILE)
    per_token = record.flops_per_token
    return Run(
        folder=folder,
        record=record,
        start_memory_bytes=int(result.get("start_memory_bytes") or 0),
        val_tokens=int(result.get("val_tokens") or 0),
        train=_curve(_newest(lines, "train"), "loss", per_token),
        evals=_curve(_newest(lines, "eval"), "val_loss", per_token),
        probes=tuple(_probe(line) for line in _newest(lines, "modulators")),
    )


def read_token_loss(folder: Path) -> tuple[Array, Array] | None:
    """Summed held-out loss (nats) and count by target token id, both ``[V]``."""
    path = folder / TOKEN_LOSS_FILE
    if not path.exists():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        return tensors["nll"].astype(np.float64), tensors["count"].astype(np.float64)
    except (SafetensorError, KeyError, OSError) as error:
        raise CheckpointError(f"{path}: not a token-loss file with 'nll' and 'count' ({error})") from None


def _read_metrics(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise CheckpointError(
            f"{path}: missing, though the run is marked finished; delete its folder to run it again"
        )
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            line["step"] = int(line["step"])
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{path}:{number}: not a metrics line; delete the run's folder to run it again"
            ) from None
        lines.append(line)
    return lines


def _newest(lines: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Lines of a kind by step; a resumed run logs a step twice, and the later line counts."""
    by_step = {line["step"]: line for line in lines if line.get("kind", "train") == kind}
    return [by_step[step] for step in sorted(by_step)]


def _curve(lines: list[dict[str, Any]], key: str, flops_per_token: float) -> Curve:
    def column(name: str) -> Array:
        return np.array([_number(line.get(name)) for line in lines], dtype=np.float64)

    tokens = column("tokens")
    return Curve(
        step=column("step"),
        tokens=tokens,
        seconds=column("seconds"),
        flops=tokens * flops_per_token,
        loss=column(key),
        bits_per_byte=column("val_bits_per_byte"),
    )


def _probe(line: dict[str, Any]) -> Probe:
    return Probe(
        step=line["step"],
        tokens=int(_number(line.get("tokens"), 0)),
        scale_mean=_by_layer(line.get("scale_mean")),
        load={int(layer): tuple(map(float, load)) for layer, load in (line.get("load") or {}).items()},
        hidden_std=_by_layer(line.get("hidden_std")),
    )


def _by_layer(values: Mapping[str, float] | None) -> dict[int, float]:
    return {layer: value for layer, value in sorted((int(k), float(v)) for k, v in (values or {}).items())}


def _number(value: Any, missing: float = float("nan")) -> float:
    return missing if value is None else float(value)
