"""A model's answers to a task's requests, kept as they come, so that a task goes on where it was stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from retoken.checkpoint.files import writing

Key = str


def key_of(kind: str, arguments: Iterable[Any]) -> Key:
    """A request by its content: what is asked, and all its arguments."""
    text = json.dumps([kind, *arguments], ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Answers:
    """A file of lines, one an answer. A line that a killed process left unfinished is dropped."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; opens the file to go on.

        Raises:
            TrainingError: the disk is full, or does not take it.
        """
        self.path = path
        self._known: dict[Key, Any] = {}
        self._cut: set[Key] = set()
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._read()
            self._file = path.open("a", encoding="utf-8")

    def _read(self) -> None:
        if not self.path.is_file():
            return
        content, whole = self.path.read_bytes(), 0
        for line in content.splitlines(keepends=True):
            try:
                key, answer, cut = json.loads(line)
            except (ValueError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            self._keep(key, answer, cut)
        if whole < len(content):
            with self.path.open("r+b") as file:
                file.truncate(whole)

    def _keep(self, key: Key, answer: Any, cut: bool) -> None:
        self._known[key] = tuple(answer) if isinstance(answer, list) else answer
        if cut:
            self._cut.add(key)

    def __contains__(self, key: Key) -> bool:
        return key in self._known

    def __getitem__(self, key: Key) -> Any:
        return self._known[key]

    @property
    def cut(self) -> int:
        """Different requests that were longer than the model's context, and lost their beginning."""
        return len(self._cut)

    def add(self, key: Key, answer: Any, cut: bool = False) -> None:
        """Keep an answer: numbers come back bit-equal."""
        self._keep(key, answer, cut)
        with writing(self.path):
            self._file.write(json.dumps([key, answer, cut]) + "\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def discard(self) -> None:
        """Delete the file: the task's result is kept elsewhere."""
        self._file.close()
        self.path.unlink(missing_ok=True)
        if not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()
