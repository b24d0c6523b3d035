"""The runs of a study that were made so far, in a CSV that is rewritten whole after each."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retoken.checkpoint.files import atomic_file, writing
from retoken.errors import CheckpointError

Row = dict[str, str]


class Ledger:
    """Rows told apart by what they are about; what was measured stands behind it."""

    def __init__(self, path: Path, about: Sequence[str], measured: Sequence[str]) -> None:
        """Reads what is there.

        Args:
            path: the file; there need not be one yet.
            about: columns that say which run it is.
            measured: columns of what came of it.

        Raises:
            CheckpointError: the file has other columns.
        """
        self.path, self._about, self._columns = path, tuple(about), [*about, *measured]
        self._rows: dict[tuple[str, ...], Row] = {}
        if not path.exists():
            return
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != self._columns:
                raise CheckpointError(
                    f"{path} has the columns {reader.fieldnames}; accepted: {', '.join(self._columns)}"
                )
            self._rows = {self._key(row): row for row in reader}

    @property
    def rows(self) -> list[Row]:
        """All of them, in order of what they are about; values as the file has them."""
        return [self._rows[key] for key in sorted(self._rows)]

    def has(self, about: Mapping[str, Any]) -> bool:
        """Whether that run has been made."""
        return self._key(about) in self._rows

    def add(self, about: Mapping[str, Any], result: Any) -> None:
        """Keep a run: the measured columns are attributes of `result`.

        Raises:
            TrainingError: the disk is full, or does not take it.
        """
        values = {name: about[name] if name in about else getattr(result, name) for name in self._columns}
        row = {name: str(value) for name, value in values.items()}
        self._rows[self._key(row)] = row
        with writing(self.path), atomic_file(self.path) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)

    def _key(self, about: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(about[name]) for name in self._about)
