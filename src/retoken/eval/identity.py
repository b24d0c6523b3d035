"""Which checkpoint results belong to: its content, not its name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from retoken.checkpoint.folders import STATE_FILE
from retoken.data.files import sha256_file
from retoken.eval.loading import Loaded

_NOT_THE_MODEL = {".md", ".lock"}


def identity(loaded: Loaded, rows_path: Path | None = None) -> str:
    """A hex digest of what a checkpoint is made of, wherever it lies.

    Of a training checkpoint that is its state.json, which has the checksum of every file; of a model folder
    its files themselves, read once; of a name on the hub the commit.

    Args:
        loaded: the checkpoint.
        rows_path: a packed file its rows are served from, if that lies elsewhere.
    """
    folder = Path(loaded.name)
    if not folder.is_dir():
        commit = getattr(loaded.model.config, "_commit_hash", None)
        return hashlib.sha256(f"{loaded.name}@{commit}".encode()).hexdigest()
    state = folder / STATE_FILE
    files = [state] if state.is_file() else sorted(path for path in folder.iterdir() if _counts(path))
    if rows_path is not None and rows_path.is_file():
        files.append(rows_path)
    told = "".join(f"{path.name} {sha256_file(path)}\n" for path in files)
    return hashlib.sha256(told.encode()).hexdigest()


def _counts(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.is_file() and not hidden and path.suffix not in _NOT_THE_MODEL
