"""`retoken serve`: an OpenAI-compatible server, on vLLM."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from retoken.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from retoken.engines.launch import Server

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY_VARIABLE = "VLLM_API_KEY"
OURS = ("model", "host", "port", "api-key", "served-model-name", "additional-config")
"""Options of vLLM's server that are told otherwise."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """An OpenAI-compatible server of a checkpoint, on vLLM: completions, chats, streams."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A folder written by save_pretrained or retoken export, or a run folder with its final model."""
    host: str = "127.0.0.1"
    """The address to listen on; anything else than loopback is open to others."""
    port: int = 8000
    """The port to listen on."""
    api_key: str = ""
    """What clients must send. Better in the variable VLLM_API_KEY: command lines can be read by others."""
    name: str = ""
    """What clients call the model; empty: the folder's name."""
    tables: Literal["", "device", "host", "disk"] = ""
    """Where rows are to live; empty: on disk where the folder has them packed, else with the weights."""
    rows_path: Path | None = None
    """The packed file to serve rows from, or to write first, with --tables disk."""
    prefetch: Literal["record", "chosen", "none"] = "record"
    """What is asked of the disk ahead: a token's whole record, what a router chose, or nothing."""
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto"
    """Of weights and states; "auto": the checkpoint's."""
    max_model_len: int = 0
    """Longest sequence; 0: the model's."""
    max_num_seqs: int = 0
    """Requests under way at once; 0: vLLM's choice."""
    kv_cache_gib: int | None = None
    """Memory for attention's keys and values on a CPU, in GiB; None: VLLM_CPU_KVCACHE_SPACE, else 2."""
    eager: bool = False
    """Do not compile: starts sooner, runs slower."""
    engine: tuple[str, ...] = ()
    """More options of vLLM's server, without dashes: max-num-batched-tokens=2048 no-enable-prefix-caching."""
    dry_run: bool = False
    """Check, print the command that would be run, and stop."""

    def run(self) -> int:
        """Check what was asked, then become the server."""
        from retoken.engines.launch import check_folder, need_engine

        server = self.server()
        check_folder(server.folder, server.placement)
        if self.dry_run:
            print(shlex.join(server.command()))
            return 0
        need_engine()
        if self.host not in LOOPBACK and not (self.api_key or os.environ.get(KEY_VARIABLE)):
            print(f"retoken serve: open to whoever reaches {self.host}: no key is set", file=sys.stderr)
        command = server.command()
        sys.stdout.flush()
        os.execve(command[0], command, server.environment())

    def server(self) -> Server:
        """What is to be started.

        Raises:
            CheckpointError: no model folder is there.
            ConfigError: an option's value is not accepted.
        """
        from retoken.engines.launch import Server

        self._check()
        folder = _model_folder(self.checkpoint)
        return Server(
            folder=folder,
            name=self.name or self.checkpoint.resolve().name,
            host=self.host,
            port=self.port,
            options=self._engine_options(),
            placement=self._placement(),
            api_key=self.api_key,
            kv_cache_gib=self.kv_cache_gib,
        )

    def _engine_options(self) -> dict[str, str]:
        options = {"dtype": self.dtype}
        for name in ("max_model_len", "max_num_seqs"):
            if getattr(self, name):
                options[name.replace("_", "-")] = str(getattr(self, name))
        if self.eager:
            options["enforce-eager"] = ""
        return options | _as_options(self.engine)

    def _placement(self) -> dict[str, Any]:
        asked = {"tables": self.tables or None, "path": self.rows_path and str(self.rows_path.resolve())}
        asked["prefetch"] = None if self.prefetch == "record" else self.prefetch
        return {name: value for name, value in asked.items() if value is not None}

    def _check(self) -> None:
        if not 0 < self.port < 65536:
            raise ConfigError(f"--port is {self.port}; accepted: 1 to 65535")
        for name in ("max_model_len", "max_num_seqs"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: 0 or more")
        if self.kv_cache_gib is not None and self.kv_cache_gib < 1:
            raise ConfigError(f"--kv-cache-gib is {self.kv_cache_gib}; accepted: 1 or more")


def _model_folder(path: Path) -> Path:
    """The folder itself, or the final model of a run."""
    for folder in (path / "model", path):
        if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
            return folder.resolve()
    raise CheckpointError(f"{path}: no model there; accepted: a folder with config.json and *.safetensors")


def _as_options(words: tuple[str, ...]) -> dict[str, str]:
    """{"a": "1", "b": ""} of "a=1" and "b".

    Raises:
        ConfigError: one has dashes or no name, or is an option here.
    """
    found = {}
    for word in words:
        name, _, value = word.partition("=")
        if not name or name.startswith("-"):
            raise ConfigError(f"--engine has {word!r}; accepted: NAME or NAME=VALUE, without dashes")
        if name in OURS:
            raise ConfigError(f"--engine sets {name}; accepted: retoken serve's own option for it")
        found[name] = value
    return found
