"""A folder of task results: one summary and one file of items a task, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from retoken.checkpoint.files import atomic_file, read_json, write_json, writing
from retoken.errors import CheckpointError, ConfigError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_KIND = "task results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A number of a whole task, as the harness reports it."""

    value: float
    stderr: float | None
    """Standard error over items; None where the harness has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """What came of one document."""

    hash: str
    """The harness's hash of the document."""
    gold: int | None
    """Which of the choices is right; None where there are no choices, or several are."""
    log_likelihoods: tuple[float, ...]
    """Nats, of each request in its order; empty where the model wrote text."""
    values: dict[str, float]
    """By metric."""
    gold_bits_per_byte: float | None
    """-log2 likelihood of the right answer over its UTF-8 bytes, the delimiter before it not counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskResult:
    """A finished task."""

    task: str
    metrics: dict[str, Metric]
    items: tuple[Item, ...]
    about: dict[str, Any] = field(default_factory=dict)
    """How it was measured: batch size, context, requests that lost their beginning, seconds."""


class ResultsFolder:
    """Results of one checkpoint under one set of settings."""

    def __init__(self, path: Path, settings: dict[str, Any], name: str) -> None:
        self.path, self.settings, self.name = path, settings, name

    @classmethod
    def open(cls, path: Path) -> ResultsFolder:
        """A folder that is there.

        Raises:
            CheckpointError: it is none, or another version's.
        """
        if not (path / MANIFEST).is_file():
            raise CheckpointError(
                f"{path} has no {MANIFEST}; accepted: a folder that `retoken eval --tasks` wrote"
            )
        found = read_json(path / MANIFEST)
        if found.get("type") != _KIND or found.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{path / MANIFEST}: {found.get('type')!r}, format_version {found.get('format_version')!r}; "
                f"accepted: {_KIND!r}, {FORMAT_VERSION}"
            )
        if not isinstance(found.get("settings"), dict):
            raise CheckpointError(f"{path / MANIFEST}: no settings in it; accepted: as it was written")
        return cls(path, found["settings"], str(found.get("checkpoint_name")))

    @classmethod
    def claim(cls, path: Path, settings: dict[str, Any], name: str) -> ResultsFolder:
        """That folder for these settings, made where it is missing.

        Raises:
            ConfigError: it holds something else, or results under other settings, which are named.
            TrainingError: the disk does not take it.
        """
        if (path / MANIFEST).exists():
            there = cls.open(path)
            for key in sorted(settings.keys() | there.settings.keys()):
                if settings.get(key) != there.settings.get(key):
                    raise ConfigError(
                        f"--out {path} has results with {key} {there.settings.get(key)!r}; this is "
                        f"{settings.get(key)!r}; accepted: the same, or another --out"
                    )
            return there
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"--out {path} holds something else; accepted: a new or empty folder")
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            head = {"type": _KIND, "format_version": FORMAT_VERSION, "checkpoint_name": name}
            write_json(path / MANIFEST, head | {"settings": settings})
        return cls(path, settings, name)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from writing here meanwhile.

        Raises:
            ConfigError: one does already.
        """
        lock = FileLock(self.path / ".lock")
        with writing(self.path):
            taken = _take(lock)
        if not taken:
            raise ConfigError(
                f"--out {self.path} is being written by another process; accepted: another --out, or wait"
            )
        try:
            yield
        finally:
            lock.release()

    def answers_path(self, task: str) -> Path:
        """Where an unfinished task's answers are kept."""
        return self.path / "partial" / f"{task}.jsonl"

    def has(self, task: str) -> bool:
        """Whether a task is finished."""
        return self._summary(task).is_file()

    def write(self, result: TaskResult) -> None:
        """Keep a finished task: its items, then the summary that makes it finished.

        Raises:
            TrainingError: the disk is full, or does not take it.
        """
        lines = "".join(json.dumps(asdict(item), allow_nan=False) + "\n" for item in result.items).encode()
        items = self._items(result.task)
        with writing(items):
            items.parent.mkdir(exist_ok=True)
            with atomic_file(items) as partial:
                partial.write_bytes(lines)
            summary = {
                "task": result.task,
                "n": len(result.items),
                "metrics": {name: asdict(metric) for name, metric in result.metrics.items()},
                "about": result.about,
                "items_sha256": hashlib.sha256(lines).hexdigest(),
            }
            write_json(self._summary(result.task), summary)

    def read(self, task: str) -> TaskResult:
        """A finished task.

        Raises:
            CheckpointError: it is missing, broken, or its items are not those that were written.
        """
        summary = read_json(self._summary(task))
        try:
            content = self._items(task).read_bytes()
        except OSError as error:
            raise CheckpointError(f"{self._items(task)} cannot be read: {error.strerror or error}") from None
        if hashlib.sha256(content).hexdigest() != summary.get("items_sha256"):
            raise CheckpointError(
                f"{self._items(task)} is not what was written; delete {self._summary(task)} to measure again"
            )
        try:
            metrics = {name: Metric(**values) for name, values in summary["metrics"].items()}
            items = tuple(_item(json.loads(line)) for line in content.splitlines())
            return TaskResult(task=summary["task"], metrics=metrics, items=items, about=summary["about"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CheckpointError(f"{self._summary(task)} is not a task's result ({error})") from None

    def _summary(self, task: str) -> Path:
        return self.path / "tasks" / f"{task}.json"

    def _items(self, task: str) -> Path:
        return self.path / "tasks" / f"{task}.items.jsonl"


def _take(lock: FileLock) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    return True


def _item(values: dict[str, Any]) -> Item:
    likelihoods = tuple(values.pop("log_likelihoods"))
    return Item(log_likelihoods=likelihoods, **values)
