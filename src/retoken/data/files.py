"""Files that are whole or absent: atomic writes, hashes, and what a full disk looks like to the caller."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from retoken.errors import DataError

CHUNK = 1 << 20


class ResumableError(DataError):
    """Something outside the corpus failed (disk, network, a killed worker): what is complete is kept."""


class DiskError(ResumableError):
    """The output folder cannot be written."""


def write_atomic(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Writes `path` so that it is either complete or not there: temporary file, fsync, rename.

    Args:
        path: the final name; an existing file is replaced.
        fill: writes the content into an open binary file.

    Raises:
        DiskError: the system refused (disk full, no permission, ...); the temporary file is removed.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        _discard(part)
        raise DiskError(
            f"cannot write {path.name} into {path.parent}: {error.strerror or error}; "
            "what is complete is kept, and the same command continues once this is mended"
        ) from error
    except BaseException:
        _discard(part)
        raise


def _discard(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the folder itself is unreachable; the write error that brought us here says so


def write_bytes(path: Path, content: bytes) -> None:
    """`write_atomic` for content already in memory."""
    write_atomic(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys (the same value gives the same bytes)."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DataError: the file is missing, empty, truncated, or not a JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path} is not readable JSON ({first_line(error)}): truncated or foreign") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a JSON {type(value).__name__}, not an object: foreign")
    return value


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
