"""A peer that needs a Python of its own: a script there, which does a turn when told to."""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any

from retoken.errors import ConfigError


class PeerProcess:
    """Starts `script` under `python` and talks to it in lines.

    The first line it gets is its options in JSON, answered by {"ready": {...}} or {"failed": "why"}. Each
    line behind that names a turn, answered by {"seconds": ...}. In between it waits, so it disturbs no one.
    """

    def __init__(self, python: Path, script: Path, options: dict[str, Any]) -> None:
        if not python.is_file():
            raise ConfigError(f"peer python is {python}, which does not exist; accepted: an interpreter")
        self._process = subprocess.Popen(
            [str(python), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        first = self._ask(json.dumps(options))
        self.failed: str | None = first.get("failed")
        """Why it cannot run; None where it can."""
        self.about: dict[str, Any] = first.get("ready", {})
        """What it says of itself."""

    def turn(self, what: str) -> float:
        """Seconds of one turn of `what`, by the script's own clock."""
        return float(self._ask(what)["seconds"])

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        with self._process:
            pass

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        return {"failed": f"its Python ended with code {self._process.wait()}", "seconds": "nan"}
