"""A peer that needs a Python of its own: a script there, which does a turn when told to."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from retoken.errors import ConfigError


class PeerProcess:
    """Starts `script` under `python` with one JSON argument; reads one JSON line a turn from it.

    The first line is {"ready": {...}} or {"failed": "why"}. Behind it, each line written to the script is a
    turn, answered by {"seconds": ...}. Between turns the script waits for input, so it disturbs no one.
    """

    def __init__(self, python: Path, script: Path, options: dict[str, Any]) -> None:
        if not python.is_file():
            raise ConfigError(f"peer python is {python}, which does not exist; accepted: an interpreter")
        self._process = subprocess.Popen(
            [str(python), str(script), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        first = self._read()
        self.failed: str | None = first.get("failed")
        """Why it cannot run; None where it can."""
        self.about: dict[str, Any] = first.get("ready", {})
        """What it says of itself."""

    def turn(self, what: str) -> float:
        """Seconds of one turn of `what`, by the script's own clock."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        with self._process:
            pass

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return {"failed": f"its Python ended with code {self._process.wait()}", "seconds": "nan"}
