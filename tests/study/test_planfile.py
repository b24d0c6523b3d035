"""plan.json: read as it was written; foreign, changed and other plans are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from retoken.errors import CheckpointError, ConfigError
from retoken.study.config import StudyConfig
from retoken.study.cost import assumed
from retoken.study.grid import Data, build_grid
from retoken.study.planfile import Plan
from retoken.study.table import Row, read_rows, write_rows


@pytest.fixture
def plan(study: Callable[..., StudyConfig], data: Data) -> Plan:
    options = study(budgets=(6e11,), control_budgets=(6e11,))
    return Plan(study=options, data=data, cost=assumed(), cells=build_grid(options, data).cells)


def test_a_plan_is_read_as_it_was_written(plan: Plan, tmp_path: Path) -> None:
    plan.write(tmp_path / "new" / "plan.json")
    assert Plan.read(tmp_path / "new" / "plan.json") == plan
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["plan.json"]


def test_a_run_changed_by_hand_is_named(plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan.write(path)
    values = json.loads(path.read_text())
    values["cells"][2]["steps"] += 1
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=rf"plan.json: run {values['cells'][2]['id']} was changed"):
        Plan.read(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"type": "comparison"}, "type 'comparison'"),
        ({"format_version": 99}, "format_version 99"),
        ({"cells": None}, "'cells' is missing"),
        ({"study": {"budgets": [1.0]}}, "is missing"),
        ({"data": {"size": 1}}, "size"),
        ({"cost": {}}, "cost of a plan"),
        ({"cells": [{"id": "x", "steps": 1}]}, "run x: field"),
    ],
)
def test_a_foreign_file_is_refused(plan: Plan, tmp_path: Path, change: dict, said: str) -> None:
    path = tmp_path / "plan.json"
    plan.write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=said):
        Plan.read(path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"plan\.json"):
        Plan.read(path)


def test_another_study_is_refused_by_the_option_that_differs(plan: Plan, data: Data) -> None:
    other = StudyConfig(**{**plan.study.to_dict(), "budgets": (6e11,), "lr": 0.5, "rhos": ("1",)})
    with pytest.raises(ConfigError, match="plans a study with"):
        plan.refuse_other(Path("plan.json"), other, data)
    plan.refuse_other(Path("plan.json"), plan.study, data)


def test_cheap_runs_come_first_stage_by_stage(plan: Plan) -> None:
    order = plan.order(plan.cells)
    stages = list(dict.fromkeys(cell.stage for cell in order))
    assert stages == ["baseline", "optimum", "frontier", "ratio", "sparsity", "stored", "time"]
    grid = [plan.seconds(cell) for cell in order if cell.stage == "baseline"]
    assert grid == sorted(grid)


def test_the_table_is_read_as_it_was_written(
    plan: Plan, tmp_path: Path, finished: Callable[..., Row]
) -> None:
    rows = [finished(cell, 4.0 + 1 / 3) for cell in plan.cells]
    write_rows(tmp_path / "runs.csv", rows)
    assert read_rows(tmp_path / "runs.csv") == rows
    head = (tmp_path / "runs.csv").read_text().splitlines()[0]
    assert head == (
        "id,stage,variant,backbone,budget,compute_params,table_params,stored_params,eta,rho,num_modulators,top_k,"
        "hidden_size,layers,tokens,flops,flops_counted,seed,loss,seconds,tokens_per_second"
    )


@pytest.mark.parametrize(
    ("text", "said"), [("id,stage\n", "column 'variant' is missing"), ("", "column 'id' is missing")]
)
def test_a_foreign_table_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_rows(tmp_path / "runs.csv")
    with pytest.raises(CheckpointError, match=r"no.csv: missing"):
        read_rows(tmp_path / "no.csv")
