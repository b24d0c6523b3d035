"""The table of runs that laws are fitted to: a CSV, one row a run."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retoken.errors import DataError
from retoken.scaling.laws import Array

BASELINE = "baseline"
_WORDS = ("variant", "backbone")
_POSITIVE = ("budget", "compute_params", "tokens", "flops", "loss")
_FROM_ZERO = ("table_params", "stored_params", "eta", "rho", "seed", "seconds")
_MAY_BE_EMPTY = ("seconds",)
_COUNTED = "flops_counted"
_ETA_TOLERANCE = 0.02


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Runs:
    """Columns ``[R]`` of R runs."""

    variant: npt.NDArray[np.str_]
    """"baseline", or what is attached: "retoken", "mort", ..."""
    backbone: npt.NDArray[np.str_]
    """Family of the backbone; one law is fitted to one family."""
    budget: Array
    """Nominal FLOPs, equal for all runs of one isocompute curve."""
    compute_params: Array
    """N_c."""
    table_params: Array
    """N_n."""
    stored_params: Array
    """All parameters held."""
    eta: Array
    """N_n / N_c."""
    rho: Array
    """Rows used a token over rows owned, K / n_e; 0 without tables."""
    tokens: Array
    """D."""
    flops: Array
    """Counted training FLOPs: a file's column `flops_counted` where it has one, otherwise `flops`."""
    seed: Array
    """Seed of backbone and data order."""
    loss: Array
    """Held-out nats a token."""
    seconds: Array
    """Training time; NaN where it was not taken."""

    def __len__(self) -> int:
        return self.loss.size

    def pick(self, which: npt.NDArray[Any]) -> Runs:
        """The runs of a mask or of indices."""
        return Runs(**{name: getattr(self, name)[which] for name in COLUMNS})

    def of_variant(self, name: str) -> Runs:
        """Runs of one variant."""
        return self.pick(self.variant == name)

    @property
    def variants(self) -> tuple[str, ...]:
        """Names that carry tables, in order of appearance; the baseline is not among them."""
        with_tables = self.variant[self.eta > 0]
        return tuple(str(name) for name in dict.fromkeys(with_tables) if name != BASELINE)

    @property
    def budgets(self) -> Array:
        """Different budgets, smallest first."""
        return np.unique(self.budget)

    def one_backbone(self, name: str = "") -> Runs:
        """Runs of one family.

        Raises:
            DataError: no such family, or several and none is named.
        """
        found = [str(word) for word in dict.fromkeys(self.backbone)]
        if name and name not in found:
            raise DataError(f"backbone {name!r} is not among the runs; accepted: {', '.join(found)}")
        if not name and len(found) > 1:
            raise DataError(f"runs of several backbones ({', '.join(found)}); accepted: one (--backbone)")
        return self.pick(self.backbone == (name or found[0]))


COLUMNS = tuple(field.name for field in fields(Runs))
"""Of a file of runs. More columns do no harm."""


def from_rows(rows: Iterable[Mapping[str, Any]]) -> Runs:
    """Runs of dictionaries with at least `COLUMNS`; nothing is checked."""
    table = list(rows)
    words: dict[str, Any] = {
        name: np.array([str(row[name]) for row in table], dtype=np.str_) for name in _WORDS
    }
    numbers: dict[str, Any] = {
        name: np.array([float(row[name]) for row in table], dtype=np.float64)
        for name in COLUMNS
        if name not in _WORDS
    }
    return Runs(**words, **numbers)


def levels(values: Array, width: float = 0.15) -> npt.NDArray[np.int64]:
    """Which setting of eta or rho each run has ``[R]``; -1 at 0.

    n_e is a whole number, so that eta of one setting wanders with the size: values within `width` of a
    setting's lowest are one setting.
    """
    found, number, lowest = np.full(values.size, -1, dtype=np.int64), -1, -np.inf
    for row in np.argsort(values, kind="stable"):
        if values[row] > 0:
            if values[row] > (1 + width) * lowest or number < 0:
                number, lowest = number + 1, values[row]
            found[row] = number
    return found


def different(values: Array) -> int:
    """How many settings of eta, rho or N_c there are."""
    return int(levels(values).max(initial=-1)) + 1


def joined(parts: Sequence[Runs]) -> Runs:
    """The runs of several tables, in order."""
    return Runs(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS})


def write(path: Path, runs: Runs) -> None:
    """A file that `read` reads."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in range(len(runs)):
            writer.writerow([_cell(name, getattr(runs, name)[row]) for name in COLUMNS])


def _cell(name: str, value: Any) -> str:
    if name in _WORDS:
        return str(value)
    if math.isnan(value):
        return ""
    return str(int(value)) if name == "seed" else repr(float(value))


def read(path: Path) -> Runs:
    """Runs of a file.

    Raises:
        DataError: no such file, a column missing, no rows, or a cell that is not accepted; names line and
        column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            lines = [(reader.line_num, row) for row in reader]
            header = reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or "not a CSV file"
        raise DataError(f"runs {path} cannot be read: {why}") from None
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise DataError(f"runs {path} have no column {missing[0]!r}; accepted: {', '.join(COLUMNS)}")
    if not lines:
        raise DataError(f"runs {path} have no rows; accepted: one row a run")
    return from_rows([_checked(path, number, row) for number, row in lines])


def _checked(path: Path, number: int, row: dict[str, str | None]) -> dict[str, Any]:
    found: dict[str, Any] = {name: _word(path, number, name, row[name]) for name in _WORDS}
    for name in (*_POSITIVE, *_FROM_ZERO):
        found[name] = _number(path, number, name, row[name])
    if _COUNTED in row:
        found["flops"] = _number(path, number, _COUNTED, row[_COUNTED])
    _check_tables(path, number, found)
    return found


def _word(path: Path, number: int, name: str, text: str | None) -> str:
    if not text or not text.strip():
        raise _refused(path, number, name, text, "a name")
    return text.strip()


def _number(path: Path, number: int, name: str, text: str | None) -> float:
    if name in _MAY_BE_EMPTY and not (text or "").strip():
        return math.nan
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    positive = name in (*_POSITIVE, _COUNTED)
    least = "above 0" if positive else "from 0"
    if not math.isfinite(value) or value < 0 or (value == 0 and positive):
        raise _refused(path, number, name, text, f"a finite number {least}")
    if name == "rho" and value > 1:
        raise _refused(path, number, name, text, "a number from 0 to 1")
    return value


def _check_tables(path: Path, number: int, found: Mapping[str, Any]) -> None:
    """eta and rho say the same as the parameters do: a fit would follow whichever is wrong."""
    counted = found["table_params"] / found["compute_params"]
    if abs(found["eta"] - counted) > _ETA_TOLERANCE * max(counted, found["eta"]):
        said = f"table_params / compute_params, here {counted:.6g}, to {_ETA_TOLERANCE:.0%}"
        raise _refused(path, number, "eta", found["eta"], said)
    if found["eta"] > 0 and found["rho"] == 0:
        raise _refused(path, number, "rho", 0, "above 0 where eta is")
    if found["variant"] == BASELINE and found["eta"] > 0:
        raise _refused(path, number, "eta", found["eta"], f"0 of the variant {BASELINE!r}")


def _refused(path: Path, number: int, column: str, found: Any, accepted: str) -> DataError:
    shown = "nothing" if found in (None, "") else repr(found)
    return DataError(f"runs {path}, line {number}, column {column}: found {shown}; accepted: {accepted}")
