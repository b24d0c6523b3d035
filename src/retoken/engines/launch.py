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
from retoken.attach.checkpoint import FIELD, read_written
from retoken.checkpoint.files import read_json
from retoken.config import require_modulator
from retoken.engines.vllm.options import asked_of
from retoken.errors import ConfigError
from retoken.serving.load import open_rows, rows_file_of

SERVER = "vllm.entrypoints.openai.api_server"
KV_CACHE_VARIABLE, KV_CACHE_GIB = "VLLM_CPU_KVCACHE_SPACE", 2
"""Of a CPU's memory, where nothing is said; left alone vLLM claims a share of all there is."""


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
    api_key: str
    """"": what VLLM_API_KEY says."""
    kv_cache_gib: int | None
    """None: what VLLM_CPU_KVCACHE_SPACE says, else 2."""

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
        """This process's, with what the server needs; what was asked for goes before what is set there."""
        found = {KV_CACHE_VARIABLE: str(KV_CACHE_GIB), "VLLM_NO_USAGE_STATS": "1", **os.environ}
        if self.kv_cache_gib is not None:
            found[KV_CACHE_VARIABLE] = str(self.kv_cache_gib)
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
        CheckpointError: what is attached, or the file of its rows, is not as it was written.
        ConfigError: rows cannot be placed as they are asked to be.
    """
    written = read_json(folder / "config.json").get(FIELD)
    if written is None:
        if placement:
            raise ConfigError(f"{folder} has no token-indexed parameters; accepted for it: no placement")
        return
    _, modulator = read_written(written)
    require_modulator(modulator, str(folder))
    packed = ROWS_FILE in written
    asked = asked_of(placement, packed)
    if packed:
        open_rows(rows_file_of(written, folder), written)
    else:
        asked.need_path()
