"""A run's folder: whose it is, and where everything in it lies."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from retoken.checkpoint.files import read_json, write_json, writing
from retoken.errors import TrainingError
from retoken.train.config import TrainConfig
from retoken.train.tables import TableOptions
from retoken.train.world import World

FREE_OPTIONS = (
    *("out", "data", "threads", "device", "keep", "checkpoint_every", "data_parallel", "timeout"),
    *("tables.memory", "tables.layout", "tables.exchange", "tables.ranks"),
)
"""Options that may differ between the parts of one run: they change no result."""


class RunFolder:
    """Paths of one run. `result.json` is written last: where it is, the run is finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.token_loss = path / "token_loss.safetensors"
        self.result = path / "result.json"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.result.is_file()

    @contextmanager
    def held_by(self, world: World, config: TrainConfig, data_fingerprint: str) -> Iterator[None]:
        """The folder for one run: locked and looked at by the first process, the others wait for that.

        Raises:
            TrainingError: It belongs to another run (the first differing option is named), or is no run's.
        """
        with self._locked() if world.leads else nullcontext():
            if world.leads:
                self._refuse_foreign(_identity(config, data_fingerprint))
            world.wait()
            yield

    def claim(self, config: TrainConfig, data_fingerprint: str) -> None:
        """Make the folder this run's, for good; done when everything is known to fit."""
        if self.config.exists():
            return
        with writing(self.config):
            identity = _identity(config, data_fingerprint)
            write_json(self.config, {"format_version": 1, **identity, "environment": _environment()})

    def _refuse_foreign(self, wanted: dict[str, Any]) -> None:
        if self.config.exists():
            _refuse_other(self.config, read_json(self.config), wanted)
        elif _visible(self.path):
            raise TrainingError(
                f"out {self.path} holds something else; accepted: a new or empty folder, or this run's"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process trains here at a time; the lock goes with the process.

        Raises:
            TrainingError: Another process holds it.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = (self.path / ".lock").open("w")
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(
                    f"out {self.path}: another process is training there; accepted: one at a time"
                ) from None
            try:
                yield
            finally:
                self._leave_nothing_empty()

    def _leave_nothing_empty(self) -> None:
        """A run that was refused before it began leaves no folder behind."""
        if not _visible(self.path):
            shutil.rmtree(self.path, ignore_errors=True)


def _identity(config: TrainConfig, data_fingerprint: str) -> dict[str, Any]:
    return {"train": config.to_dict(), "data_fingerprint": data_fingerprint}


def fingerprint(manifest: Any) -> str:
    """A digest of what a token store holds, wherever it lies."""
    values = asdict(manifest) if is_dataclass(manifest) and not isinstance(manifest, type) else manifest
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _visible(path: Path) -> list[str]:
    return [name for name in os.listdir(path) if name != ".lock"]


def _refuse_other(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    there, here = found.get("train"), wanted["train"]
    if not isinstance(there, dict):
        raise TrainingError(f"{path} is not a training run's; accepted for out: a new folder, or this run's")
    # A run that was begun before there was an option is what the option's default means, but for tables.
    before = {field.name: field.default for field in fields(TrainConfig)}
    before |= {"tables": TableOptions(optimizer="adamw").to_dict()}
    for name, value in _flat(here).items():
        other = _flat(before | there).get(name)
        if name not in FREE_OPTIONS and other != value:
            raise TrainingError(
                f"{path} is of a run with {name} {other!r}, not {value!r}; accepted: that, or another out"
            )
    if found.get("data_fingerprint") != wanted["data_fingerprint"]:
        raise TrainingError(
            f"{path} is of a run on other data than {here['data']}; accepted: that data, or another out"
        )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """One level of nesting joined by dots: modulator.top_k."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _environment() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "platform": platform.platform(),
    }
