"""``runs.csv``: one row a finished run, tidy, rewritten whole and atomically after every run."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from retoken.checkpoint.files import atomic_file, writing
from retoken.compare.runs import RunRecord
from retoken.errors import CheckpointError
from retoken.study.cell import CONTROLS, Cell

TABLE = "runs.csv"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One run. The fields, in this order, are the columns."""

    id: str
    """What `retoken scaling run --only` takes."""
    stage: str
    """Which part of the study it belongs to, see `retoken.study.cell.STAGES`."""
    variant: str
    """"baseline", "retoken" or "mort"; of a control, which lies on no isocompute curve, its stage."""
    backbone: str
    """"dense" or "mixture"."""
    budget: float
    """Nominal training FLOPs it is compared at; a control may spend more."""
    compute_params: int
    """N_c."""
    table_params: int
    """N_n."""
    stored_params: int
    """Everything a checkpoint holds."""
    eta: float
    """N_n / N_c."""
    rho: float
    """K / n_e; 1 with ReToken, 0 for the baseline."""
    num_modulators: int
    """n_e; 1 with ReToken, 0 for the baseline."""
    top_k: int
    """K."""
    hidden_size: int
    layers: int
    tokens: int
    """D, trained on."""
    flops: float
    """6 N_c D."""
    flops_counted: float
    """Counted: head, attention, router and tables included."""
    seed: int
    loss: float
    """Nats per held-out token, without auxiliary losses."""
    seconds: float
    """Of training, without evaluation and checkpoints."""
    tokens_per_second: float

    @classmethod
    def of(cls, cell: Cell, record: RunRecord) -> Row:
        """What a finished run came to."""
        own = {f.name: getattr(cell, f.name) for f in fields(cls) if hasattr(cell, f.name)}
        if cell.stage in CONTROLS:
            own["variant"] = cell.stage
        own |= {"tokens": record.tokens, "flops_counted": record.flops_per_token * record.tokens}
        return cls(
            **own,
            loss=record.val_loss,
            seconds=record.train_seconds,
            tokens_per_second=record.tokens_per_second,
        )


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the table.

    Raises:
        TrainingError: The disk does not take it.
    """
    names = [field.name for field in fields(Row)]
    with writing(path), atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_said(getattr(row, name)) for name in names] for row in rows)


def read_rows(path: Path) -> list[Row]:
    """The table `write_rows` wrote; a column it does not know is left alone.

    Raises:
        CheckpointError: It is missing, lacks a column, or a cell is no number.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            missing = [field.name for field in fields(Row) if field.name not in (reader.fieldnames or ())]
            if missing:
                raise CheckpointError(f"{path}: column {missing[0]!r} is missing; accepted: a runs.csv")
            return [_row(path, number, line) for number, line in enumerate(reader, start=2)]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CheckpointError(f"{path}: not readable as CSV ({error})") from None


def _row(path: Path, number: int, line: dict[str, Any]) -> Row:
    kinds = {"int": int, "float": float, "str": str}
    values: dict[str, Any] = {}
    for field in fields(Row):
        try:
            values[field.name] = kinds[str(field.type)](line[field.name])
        except (TypeError, ValueError):
            raise CheckpointError(f"{path}:{number}: {field.name} is {line[field.name]!r}") from None
    return Row(**values)


def _said(value: Any) -> str:
    """Floats so that reading gives the same number."""
    return repr(value) if isinstance(value, float) else str(value)
