"""`retoken scaling plan`: budgets -> a grid of runs, with what it will cost on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from retoken.cli.options import as_json
from retoken.errors import ConfigError
from retoken.study.config import StudyConfig
from retoken.study.cost import Cost, assumed, corrected
from retoken.study.folder import StudyFolder, data_of
from retoken.study.grid import Data, Grid, build_grid
from retoken.study.planfile import Plan, merged
from retoken.study.table import Row, read_rows

CostSource = Literal["auto", "measure", "runs", "keep"]


@dataclass(frozen=True, kw_only=True)
class ScalingPlan:
    """Plan a scaling study: sizes and tokens at each budget, variants, controls, and the hours they take.

    Given again on a folder that holds a plan, with the same options or none, it goes on in it: what finished
    runs decide is decided, and runs that were planned for good stay as they are.
    """

    out: Path = Path("out/scaling")
    """Folder of the study: plan.json, and later runs.csv and a folder a run."""
    data: Path | None = None
    """Token store written by `retoken prepare`; a plan that exists knows its own."""
    runs: Path | None = None
    """Finished runs that tell the best sizes; without it runs.csv of the folder, where there is one."""
    cost: CostSource = "auto"
    """Speeds: "measure" a few shapes now; of finished "runs"; "keep" the plan's, or a bare guess; "auto": of
    runs where there are some, kept where there is a plan, measured otherwise."""
    jobs: int = 0
    """Runs at once that the hours are for; 0: the machine's cores over the threads of a run."""
    list: bool = False
    """Print every run with its id."""
    json: bool = False
    """Print one JSON object."""
    study: tyro.conf.OmitArgPrefixes[StudyConfig] = field(default_factory=StudyConfig)
    """What is studied."""

    def run(self) -> int:
        """Plan, write, print; returns the exit code."""
        folder = StudyFolder(self.out)
        old = Plan.read(folder.plan) if folder.plan.exists() else None
        study, data = self._asked(folder, old)
        rows = self._rows(folder, old)
        cost = old.cost if old else assumed()
        plan = Plan(study=study, data=data, cost=cost, cells=old.cells if old else ())
        plan, grid = plan.advanced(rows)
        plan = self._costed(plan, grid, rows, old)
        plan.write(folder.plan)
        self._print(folder, plan, grid, rows)
        return 0

    def _asked(self, folder: StudyFolder, old: Plan | None) -> tuple[StudyConfig, Data]:
        if old is None:
            if self.data is None:
                raise ConfigError("data is missing; accepted: a token store written by `retoken prepare`")
            return self.study, data_of(self.data)
        study = old.study if self.study == StudyConfig() else self.study
        data = data_of(self.data) if self.data else old.data
        old.refuse_other(folder.plan, study, data)
        return study, data

    def _rows(self, folder: StudyFolder, old: Plan | None) -> list[Row]:
        if self.runs is not None:
            return read_rows(self.runs)
        return folder.rows(old.cells if old else ())

    def at_once(self, study: StudyConfig) -> int:
        """Runs at once."""
        from retoken.compare.machine import cores

        return self.jobs or max(1, cores() // study.threads)

    def _costed(self, plan: Plan, grid: Grid, rows: list[Row], old: Plan | None) -> Plan:
        cost = self._cost(plan, rows, old)
        if cost == plan.cost:
            return plan
        plan = Plan(study=plan.study, data=plan.data, cost=cost, cells=plan.cells)
        # How much longer a control of equal time is to train follows from the speeds.
        again = build_grid(plan.study, plan.data, rows, plan.slower)
        return Plan(study=plan.study, data=plan.data, cost=cost, cells=merged(plan.cells, again.cells))

    def _cost(self, plan: Plan, rows: list[Row], old: Plan | None) -> Cost:
        cells = {cell.id: cell for cell in plan.cells}
        source = self.cost
        if source == "auto":
            source = "runs" if any(row.id in cells for row in rows) else "keep" if old else "measure"
        if source == "measure":
            from retoken.study.calibrate import calibrate

            if self.data is None:
                raise ConfigError("cost is 'measure' without data; accepted: the token store as --data")
            return calibrate(plan.cells, plan.study, data=self.data, jobs=self.at_once(plan.study))
        if source == "runs":
            return corrected(plan.cost, rows, cells, self.at_once(plan.study))
        return plan.cost

    def _print(self, folder: StudyFolder, plan: Plan, grid: Grid, rows: list[Row]) -> None:
        from retoken.cli.scaling_study_view import print_plan

        jobs = self.at_once(plan.study)
        if self.json:
            cells = [
                cell.to_dict() | {"eta": cell.eta, "rho": cell.rho, "seconds": plan.seconds(cell)}
                for cell in plan.order(plan.cells)
            ]
            best = [asdict(each) for each in grid.best]
            hours = plan.hours(plan.cells, jobs)
            found = {"plan": str(folder.plan), "hours": hours, "jobs": jobs, "cost": plan.cost.to_dict()}
            print(as_json({**found, "best": best, "notes": [*grid.notes], "cells": cells}))
        else:
            print_plan(plan, grid, {row.id for row in rows}, jobs=jobs, path=folder.plan, every=self.list)
