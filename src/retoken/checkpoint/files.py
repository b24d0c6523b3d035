"""Writing that is either done or not done: a temporary name, fsync, then a rename."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from retoken.errors import CheckpointError, TrainingError


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes `target`'s name when the block ends well, and is gone otherwise."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in partial.rglob("*"):
            sync(path)
        sync(partial)
        if target.exists():
            shutil.rmtree(target)
        os.replace(partial, target)
        sync(target.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """A temporary file that takes `target`'s name when the block ends well, and is gone otherwise."""
    partial = target.with_name(f".{target.name}.partial")
    try:
        yield partial
        sync(partial)
        os.replace(partial, target)
        sync(target.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(target: Path, values: Any) -> None:
    """Indented JSON, atomically; a number JSON has no word for (nan) is refused."""
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    with atomic_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: It is missing, or holds something else.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: holds a {type(values).__name__}; expected an object")
    return values


@contextmanager
def writing(path: Path, hint: str = "") -> Iterator[None]:
    """Turn what the disk refuses into one line that names `path`.

    Raises:
        TrainingError: The disk is full, or does not take it.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        reason = "the disk is full" if full else getattr(error, "strerror", None) or error
        raise TrainingError(f"{path}: cannot write ({reason}){hint}") from error


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
