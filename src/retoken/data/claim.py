"""Whose folder is it: a preparation claims its output folder, and never writes into another one's."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from retoken.data.files import read_json, write_json
from retoken.data.manifest import MANIFEST, SPLITS, Manifest
from retoken.data.pieces import RECORDS
from retoken.errors import DataError

CLAIM = "preparation.json"
TOKENIZER = "tokenizer"
COUNTS = "token_counts.npy"
TOKEN_BYTES = "token_bytes.npy"


def claim(out: Path, identity: dict[str, Any]) -> bool:
    """Makes the folder ours. True where it already holds exactly this preparation, finished.

    Raises:
        DataError: it holds another preparation, or files of someone else.
    """
    if out.exists() and not out.is_dir():
        raise DataError(f"--out {out} is a file; accepted: a new or empty folder, or one of this preparation")
    if (out / MANIFEST).is_file():
        manifest = Manifest.load(out)
        _same(out, manifest.preparation, identity)
        tidy(out)
        return True
    if (out / CLAIM).is_file():
        _same(out, read_json(out / CLAIM), identity)
        for left in out.rglob(".*.part"):  # of a process that was killed while it wrote
            left.unlink()
        return False
    if out.exists() and any(out.iterdir()):
        raise DataError(f"--out {out} is not empty and holds no preparation; accepted: a new or empty folder")
    write_json(out / CLAIM, identity)
    return False


def _same(out: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    there, asked = _flat(there), _flat(json.loads(json.dumps(asked)))
    differing = [key for key in asked if there.get(key) != asked[key]]
    if differing:
        told = "; ".join(
            f"{key} {_short(there.get(key))} there, {_short(asked[key])} asked" for key in differing
        )
        raise DataError(
            f"--out {out} holds another preparation: {told}. Give another --out, or delete that folder"
        )


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    return {**{key: value for key, value in identity.items() if key != "settings"}, **identity["settings"]}


def _short(value: Any) -> str:
    if isinstance(value, list):  # sources
        text = ", ".join(_source(each) for each in value)
    else:
        text = f"'{value}'" if isinstance(value, str) else str(value)
    return text if len(text) <= 160 else text[:157] + "..."


def _source(source: dict[str, Any]) -> str:
    name = next((str(source[key]) for key in ("name", "package", "dataset", "python") if key in source), "?")
    digest = source.get("sha256") or source.get("commit") or _digest(source)
    return f"{name} ({digest[:12]})"


def _digest(source: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()


def discard(out: Path) -> None:
    """Removes what an abandoned preparation wrote, and the folder if nothing else is in it."""
    for pattern in (f"{name}-*.{end}" for name in SPLITS for end in ("bin", "offsets.npy")):
        for path in out.glob(pattern):
            path.unlink()
    shutil.rmtree(out / TOKENIZER, ignore_errors=True)
    for name in (COUNTS, TOKEN_BYTES):
        (out / name).unlink(missing_ok=True)
    tidy(out)
    if not any(out.iterdir()):
        out.rmdir()


def tidy(out: Path) -> None:
    shutil.rmtree(out / RECORDS, ignore_errors=True)
    (out / CLAIM).unlink(missing_ok=True)
