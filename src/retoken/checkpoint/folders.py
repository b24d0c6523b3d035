"""The folders of a run's checkpoints: each whole or absent, and known to be whole before it is read."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retoken.checkpoint.files import read_json, sync, write_json
from retoken.checkpoint.index import INDEX_FILE, TensorFiles, read_index
from retoken.checkpoint.peers import Peers
from retoken.checkpoint.tensorfile import crc32_of
from retoken.errors import CheckpointError

FORMAT_VERSION = 2
STATE_FILE = "state.json"
_NAME = re.compile(r"step-(\d+)")
_LEFT_BEHIND = re.compile(r"\.step-\d+\.(partial|dropped)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A checkpoint folder, as its manifest describes it."""

    path: Path
    step: int
    """Optimizer steps done."""
    world_size: int
    """Processes that wrote it."""
    files: dict[str, dict[str, int]]
    """{name: its "bytes" and "crc32"}."""
    state: dict[str, Any] = field(default_factory=dict)
    """What the loop put beside the tensors: reader position, clock, metrics not yet written."""

    def tensors(self) -> TensorFiles:
        """Its tensors, not read yet.

        Raises:
            CheckpointError: The index is broken.
        """
        return TensorFiles(self.path, read_index(self.path / INDEX_FILE))


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:06d}"


def newest_path(root: Path) -> Path | None:
    """The folder of the newest checkpoint."""
    found = all_paths(root)
    return found[-1] if found else None


def all_paths(root: Path) -> list[Path]:
    """The folders of all checkpoints, oldest first."""
    paths = [path for path in root.iterdir() if _NAME.fullmatch(path.name)] if root.is_dir() else []
    return sorted(paths, key=step_of)


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a training checkpoint, broken or not."""
    return (path / STATE_FILE).is_file() or (path / INDEX_FILE).is_file()


def read(path: Path) -> Checkpoint:
    """A checkpoint's manifest.

    Raises:
        CheckpointError: There is none, or another version's.
    """
    found, file = read_json(path / STATE_FILE), path / STATE_FILE
    version = found.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise CheckpointError(f"{file}: format_version is {version!r}; accepted: {FORMAT_VERSION}")
    if found.get("type") != "checkpoint" or not {"step", "world_size", "files", "state"} <= set(found):
        raise CheckpointError(f"{file}: not a training checkpoint's")
    values = {name: found[name] for name in ("step", "world_size", "files", "state")}
    return Checkpoint(path=path, **values)


def write_manifest(found: Checkpoint) -> None:
    """What `read` reads; written last."""
    values = {"step": found.step, "world_size": found.world_size, "files": found.files, "state": found.state}
    write_json(found.path / STATE_FILE, {"type": "checkpoint", "format_version": FORMAT_VERSION, **values})


def facts_of(path: Path) -> dict[str, int]:
    """What the manifest says of a file."""
    return {"bytes": path.stat().st_size, "crc32": crc32_of(path)}


def newest(root: Path, peers: Peers | None = None) -> Checkpoint | None:
    """The newest checkpoint, every byte of it checked; None where there is none yet.

    The processes share the reading and come to the same end.

    Raises:
        CheckpointError: A file of it is missing, truncated, damaged or foreign; names it, and the newest
            checkpoint before it that is whole.
    """
    path = newest_path(root)
    return None if path is None else checked(path, peers)


def checked(path: Path, peers: Peers | None = None) -> Checkpoint:
    """One checkpoint, every byte of it checked, as `newest`."""
    peers = peers or Peers()
    fault = _fault(path, peers)
    if fault is not None:
        raise CheckpointError(f"{fault}; {_instead_of(path, peers)}")
    return read(path)


def _fault(path: Path, peers: Peers) -> str | None:
    """What is wrong with a checkpoint; the same in every process."""
    try:
        files = read(path).files
        mine = sorted(files)[peers.rank :: peers.size]
        fault = next((f for f in (_fault_of(path / name, files[name]) for name in mine) if f), None)
    except CheckpointError as error:
        fault = str(error)
    return next((found for found in peers.gather(fault) if found), None)


def _fault_of(path: Path, facts: dict[str, int]) -> str | None:
    try:
        found = path.stat().st_size
        if found != facts["bytes"]:
            return f"{path} has {found} bytes, {facts['bytes']} were written"
        crc = crc32_of(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    if crc != facts["crc32"]:
        return f"{path} is damaged (crc32 {crc:08x}, {facts['crc32']:08x} was written)"
    return None


def _instead_of(path: Path, peers: Peers) -> str:
    """What to do about a broken checkpoint."""
    before = [p for p in all_paths(path.parent) if step_of(p) < step_of(path)]
    for other in reversed(before):
        if _fault(other, peers) is None:
            broken = [p for p in before if step_of(p) > step_of(other)] + [path]
            return f"{other.name} is whole: delete {' and '.join(map(str, broken))} to go on from it"
    return f"no checkpoint before it is whole: delete {path.parent} to train from the start"


def step_of(path: Path) -> int:
    """The optimizer steps done, by a checkpoint folder's name."""
    found = _NAME.fullmatch(path.name)
    return int(found.group(1)) if found else 0


def partial_of(target: Path) -> Path:
    """Where a checkpoint is written before it takes its name."""
    return target.with_name(f".{target.name}.partial")


def put_in_place(partial: Path, target: Path) -> None:
    """Give a finished folder its name; one that has it already makes room."""
    sync(partial)
    if target.exists():
        drop(target)
    os.replace(partial, target)
    sync(target.parent)


def drop(path: Path) -> None:
    """Delete a checkpoint. It loses its name first, so that no half-deleted one is ever taken for whole."""
    aside = path.with_name(f".{path.name}.dropped")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(path, aside)
    shutil.rmtree(aside, ignore_errors=True)


def prune(root: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for path in all_paths(root)[:-keep]:
        drop(path)


def clear_left_behind(root: Path) -> None:
    """Delete what processes that died while they wrote or deleted a checkpoint left of it."""
    paths: Iterable[Path] = root.iterdir() if root.is_dir() else ()
    for path in [path for path in paths if _LEFT_BEHIND.fullmatch(path.name)]:
        shutil.rmtree(path, ignore_errors=True)
