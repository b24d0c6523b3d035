"""``plan.json``: a study, its data, its runs and their cost; written atomically."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retoken.checkpoint.files import read_json, write_json, writing
from retoken.compare.folder import flat
from retoken.errors import CheckpointError, ConfigError
from retoken.study.cell import STAGES, Cell
from retoken.study.config import StudyConfig
from retoken.study.cost import Cost
from retoken.study.grid import Data, Grid, build_grid
from retoken.study.table import Row

FORMAT_VERSION = 1
PLAN = "plan.json"
_PARTS = ("study", "data", "cost", "cells")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A study that can be run."""

    study: StudyConfig
    data: Data
    cost: Cost
    cells: tuple[Cell, ...]

    def seconds(self, cell: Cell) -> float:
        """Predicted seconds of a run, its start and its evaluation included."""
        held_out = self.study.eval_tokens or self.data.val_tokens
        return self.cost.run_seconds(cell, held_out)

    def hours(self, cells: Iterable[Cell], jobs: int) -> float:
        """Predicted hours of these runs, `jobs` at once."""
        return sum(map(self.seconds, cells)) / 3600 / jobs

    def order(self, cells: Iterable[Cell]) -> list[Cell]:
        """Dense before mixture, stage by stage, seed by seed, the cheap ones first."""
        return sorted(
            cells,
            key=lambda c: (c.backbone == "mixture", STAGES.index(c.stage), c.seed, self.seconds(c), c.id),
        )

    def advanced(self, rows: Sequence[Row]) -> tuple[Plan, Grid]:
        """The plan with what finished runs decide; runs that were planned for good stay as they are."""
        grid = build_grid(self.study, self.data, rows, self.slower)
        return replace(self, cells=merged(self.cells, grid.cells)), grid

    def slower(self, base: Cell, other: Cell) -> float:
        """Expected seconds of a token of one run over another's."""
        return self.cost.token_seconds(other) / self.cost.token_seconds(base)

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            TrainingError: The disk does not take it.
        """
        values = {
            "type": "scaling study",
            "format_version": FORMAT_VERSION,
            "study": self.study.to_dict(),
            "data": asdict(self.data),
            "cost": self.cost.to_dict(),
            "cells": [cell.to_dict() for cell in self.cells],
        }
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, values)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """The plan `write` wrote.

        Raises:
            CheckpointError: It is missing, something else, or was changed; what and where is named.
        """
        values = read_json(path)
        kind = (values.get("type"), values.get("format_version"))
        if kind != ("scaling study", FORMAT_VERSION):
            raise CheckpointError(
                f"{path}: type {kind[0]!r}, format_version {kind[1]!r}; accepted: type 'scaling study', "
                f"format_version {FORMAT_VERSION}"
            )
        for part in _PARTS:
            if not isinstance(values.get(part), list if part == "cells" else dict):
                raise CheckpointError(f"{path}: {part!r} is missing; the file is not what a plan wrote")
        return cls._of(values, path)

    @classmethod
    def _of(cls, values: Mapping[str, Any], path: Path) -> Plan:
        try:
            study = StudyConfig.from_dict(values["study"])
            data = Data(**values["data"])
        except (ConfigError, TypeError) as error:
            raise CheckpointError(f"{path}: {error}") from None
        plan = cls(
            study=study,
            data=data,
            cost=Cost.from_dict(values["cost"]),
            cells=tuple(Cell.from_dict(cell, path) for cell in values["cells"]),
        )
        return plan

    def refuse_other(self, path: Path, study: StudyConfig, data: Data) -> None:
        """Refuse to go on in this plan with another study.

        Raises:
            ConfigError: An option differs; the first one is named.
        """
        there = flat({**self.study.to_dict(), "data": asdict(self.data)})
        here = flat({**study.to_dict(), "data": asdict(data)})
        for name, value in here.items():
            if there.get(name) != value:
                raise ConfigError(
                    f"{path} plans a study with {name} {there.get(name)!r}, not {value!r}; "
                    "choose another out, or that value"
                )


def merged(known: Iterable[Cell], new: Iterable[Cell]) -> tuple[Cell, ...]:
    """New runs beside those that were planned for good, which are never changed; guesses are replaced."""
    kept = {cell.id: cell for cell in known if not cell.provisional}
    found = dict(kept)
    for cell in new:
        found.setdefault(cell.id, cell)
    return tuple(found.values())
