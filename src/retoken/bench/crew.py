"""Ranks that do a turn together when told to: ours, or a peer's under a Python of its own."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from retoken.errors import TrainingError

PATIENCE = 900.0
"""Seconds that a turn may take."""


class Crew:
    """Starts `command` once for each rank with one JSON argument; each reads and writes a JSON line a turn.

    The first line of each is {"ready": {...}} or {"failed": "why"}. Ranks find each other by RANK,
    WORLD_SIZE, MASTER_ADDR and MASTER_PORT. Between turns they wait for input, so they disturb no one.
    """

    def __init__(
        self, command: Sequence[str], ranks: int, options: Mapping[str, Any], *, threads: int = 1
    ) -> None:
        """`threads`: of each rank, for libraries that only ask when they are loaded."""
        self._folder = tempfile.TemporaryDirectory(prefix="retoken-crew-")
        self._answers: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        common = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        common |= {"OMP_NUM_THREADS": str(threads), "LOCAL_WORLD_SIZE": str(ranks)}
        self._processes = [
            self._start([*command, json.dumps(dict(options))], rank, common) for rank in range(ranks)
        ]
        self.failed: str | None = None
        """Why it cannot run; None where it can."""
        self.about: dict[str, Any] = {}
        """What its first rank says of itself."""
        try:
            first = self._collect()
        except TrainingError as error:
            self.failed = str(error)
            self.close()
            return
        self.failed = next((answer["failed"] for answer in first if "failed" in answer), None)
        self.about = first[0].get("ready", {})

    def turn(self, **what: Any) -> list[dict[str, Any]]:
        """Each rank's answer.

        Raises:
            TrainingError: a rank failed or is gone.
        """
        line = (json.dumps(what) + "\n").encode()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(line)
            process.stdin.flush()
        answers = self._collect()
        for rank, answer in enumerate(answers):
            if "failed" in answer:
                raise TrainingError(f"rank {rank} of the bench: {answer['failed']}")
        return answers

    def close(self) -> None:
        """End the ranks."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            with process:
                pass
        self._folder.cleanup()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, command: list[str], rank: int, common: dict[str, str]) -> subprocess.Popen[bytes]:
        with self._errors(rank).open("wb") as errors:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
        assert process.stdout is not None
        threading.Thread(target=self._listen, args=(rank, process.stdout), daemon=True).start()
        return process

    def _listen(self, rank: int, lines: IO[bytes]) -> None:
        """JSON lines go to whoever collects; libraries write others."""
        for line in lines:
            if line.startswith(b"{"):
                self._answers.put((rank, json.loads(line)))
        self._answers.put((rank, None))

    def _collect(self) -> list[dict[str, Any]]:
        """One answer of each rank. The first that fails ends it: the others would wait for that one."""
        found: dict[int, dict[str, Any]] = {}
        while len(found) < len(self._processes):
            try:
                rank, answer = self._answers.get(timeout=PATIENCE)
            except queue.Empty:
                raise TrainingError(f"a turn of the bench took more than {PATIENCE:.0f} seconds") from None
            if answer is None:
                raise TrainingError(f"rank {rank} of the bench ended: {self._last_words(rank)}")
            found[rank] = answer
            if "failed" in answer:
                return [answer]
        return [found[rank] for rank in range(len(self._processes))]

    def _errors(self, rank: int) -> Path:
        return Path(self._folder.name) / f"rank{rank}.stderr"

    def _last_words(self, rank: int) -> str:
        lines = self._errors(rank).read_text(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else f"code {self._processes[rank].wait()}"


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]
