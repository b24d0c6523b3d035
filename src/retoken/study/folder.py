"""A study's folder: ``plan.json``, ``runs.csv``, and a folder a run under ``runs/``."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from retoken.checkpoint.files import writing
from retoken.compare.runs import is_finished, read_record
from retoken.data.tokens import TokenStore
from retoken.errors import CheckpointError, TrainingError
from retoken.study.cell import Cell
from retoken.study.grid import Data
from retoken.study.planfile import PLAN
from retoken.study.table import TABLE, Row, read_rows, write_rows
from retoken.train.folder import fingerprint

HEAVY = ("checkpoints", "model", "tensorboard")
"""What a finished run does not keep: its result, curves and losses by token stay."""
PATIENCE = 120.0
"""Seconds that runs of a killed process get to write their checkpoints and leave."""


class StudyFolder:
    """Paths of one study, and what has finished in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan = path / PLAN
        self.table = path / TABLE

    def run(self, cell: Cell) -> Path:
        """The folder of one run."""
        return self.path / "runs" / cell.id

    def rows(self, cells: Iterable[Cell]) -> list[Row]:
        """Finished runs: those of runs.csv, and those whose folder says so.

        Raises:
            CheckpointError: runs.csv or a run's result is broken; it is named.
        """
        known = {row.id: row for row in read_rows(self.table)} if self.table.exists() else {}
        for cell in cells:
            if is_finished(self.run(cell)):
                known[cell.id] = self._row(cell)
        return list(known.values())

    def _row(self, cell: Cell) -> Row:
        row = Row.of(cell, read_record(self.run(cell), name=cell.variant, seed=cell.seed))
        if (row.table_params, row.tokens) != (cell.table_params, cell.tokens):
            raise CheckpointError(
                f"{self.run(cell)}: {row.tokens} tokens and {row.table_params} table parameters; the plan "
                f"says {cell.tokens} and {cell.table_params}; delete the folder to run it again"
            )
        return row

    def write_rows(self, rows: Sequence[Row], cells: Iterable[Cell]) -> None:
        """runs.csv in the plan's order; rows of no planned run stay behind them."""
        place = {cell.id: number for number, cell in enumerate(cells)}
        self.path.mkdir(parents=True, exist_ok=True)
        write_rows(self.table, sorted(rows, key=lambda row: place.get(row.id, len(place))))

    def lighten(self, cell: Cell) -> None:
        """Delete a finished run's checkpoints and model."""
        for name in HEAVY:
            shutil.rmtree(self.run(cell) / name, ignore_errors=True)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The folder for this process alone; the lock goes with the process.

        Raises:
            TrainingError: Another process runs this study here.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = (self.path / ".lock").open("w")
        with handle:
            if not _locks(handle):
                raise TrainingError(
                    f"out {self.path}: another process runs this study; accepted: one at a time"
                )
            yield

    def await_orphans(self, cells: Iterable[Cell]) -> None:
        """Wait for runs that a killed process left behind: they stop by themselves, with a checkpoint.

        Raises:
            TrainingError: One does not leave.
        """
        last = time.monotonic() + PATIENCE
        for cell in cells:
            lock = self.run(cell) / ".lock"
            while lock.exists() and not _free(lock):
                if time.monotonic() > last:
                    raise TrainingError(f"out {self.run(cell)}: another process is training there")
                time.sleep(0.2)


def _free(lock: Path) -> bool:
    with lock.open("a") as handle:
        return _locks(handle)


def _locks(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False


def data_of(path: Path) -> Data:
    """What a plan needs of a token store.

    Raises:
        DataError: It is missing or broken.
    """
    manifest = TokenStore.open(path).manifest
    return Data(
        fingerprint=fingerprint(manifest),
        vocab_size=manifest.vocab_size,
        train_tokens=manifest.splits["train"].tokens,
        val_tokens=manifest.splits["val"].tokens,
    )
