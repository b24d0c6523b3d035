"""How a vLLM server of a model folder is started: its command line and its environment."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retoken.attach.absent import ROWS_FILE
from retoken.attach.checkpoint import FIELD, read_field
from retoken.checkpoint.files import read_json
from retoken.errors import CheckpointError, ConfigError
from retoken.serving.load import rows_file_of
from retoken.serving.packed import PackedFile
from retoken.serving.place import Asked

SERVER = "vllm.entrypoints.openai.api_server"
KV_CACHE_GIB = 2
"""Of a CPU's memory; left alone vLLM claims a share of all there is."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server to be."""

    folder: Path
    name: str
    """What clients call the model."""
    host: str
    port: int
    options: Mapping[str, str]
    """vLLM's own, without dashes; "" for a flag."""
    placement: Mapping[str, Any]
    """The plugin's options: where rows are to live."""
    api_key: str = ""
    kv_cache_gib: int = KV_CACHE_GIB

    def command(self) -> list[str]:
        """The command line. It does not hold the key: any user of the machine can read it there."""
        line = [sys.executable, "-m", SERVER, "--model", str(self.folder), "--served-model-name", self.name]
        line += ["--host", self.host, "--port", str(self.port)]
        for name, value in self.options.items():
            line += [f"--{name}", value] if value else [f"--{name}"]
        if self.placement:
            line += ["--additional-config", json.dumps({FIELD: dict(self.placement)})]
        return line

    def environment(self) -> dict[str, str]:
        """This process's, with what the server needs; what is set there already is kept."""
        wanted = {"VLLM_CPU_KVCACHE_SPACE": str(self.kv_cache_gib), "VLLM_NO_USAGE_STATS": "1"}
        found = {**wanted, **os.environ}
        if self.api_key:
            found["VLLM_API_KEY"] = self.api_key
        return found


def need_engine() -> None:
    """Refuse to start without one.

    Raises:
        ConfigError: vLLM is not installed beside this package.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "vLLM is not installed beside retoken; accepted: an environment with it (docs/serving.md has the "
            "commands), or retoken generate, which needs none"
        )


def check_folder(folder: Path, placement: Mapping[str, Any]) -> None:
    """Say now what the server would say after it has started.

    Raises:
        CheckpointError: the folder is not a whole model's.
        ConfigError: rows cannot be placed as they are asked to be.
    """
    config = read_json(folder / "config.json")
    written = config.get(FIELD)
    if written is None:
        if placement:
            raise ConfigError(f"{folder} has no token-indexed parameters; accepted for it: no placement")
        return
    read_field(_Config(written))  # pyright: ignore
    packed = ROWS_FILE in written
    tables = placement.get("tables") or ("disk" if packed else "device")
    given = {name: placement.get(name) for name in ("path", "rows", "counts")}
    ways = {"verify": placement.get("verify", False), "prefetch": placement.get("prefetch", "record")}
    asked = Asked.of(tables, placement.get("budget"), **given, **ways)
    if packed:
        PackedFile(rows_file_of(written, folder))
    else:
        asked.need_path()
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder}: no safetensors file there; accepted: a whole model folder")


class _Config:
    """A config's field, as `read_field` takes it."""

    def __init__(self, written: Any) -> None:
        self.retoken = written
