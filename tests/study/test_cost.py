"""Planted speeds are found again, and finished runs correct what was measured."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retoken.study.calibrate import calibrate, sample
from retoken.study.config import StudyConfig
from retoken.study.cost import Cost, Point, assumed, corrected, features_of, fit_cost
from retoken.study.grid import Data, build_grid
from retoken.study.table import Row

PLANTED = (1e-6, 2e-6, 3e-11, 4e-6, 5e-10)


def points(cells: list) -> list[Point]:
    return [
        Point(backbone=c.backbone, features=features_of(c), seconds=float(np.dot(PLANTED, features_of(c))))
        for c in cells
    ]


def test_planted_speeds_are_found(study: Callable[..., StudyConfig], data: Data) -> None:
    cells = list(build_grid(study(), data).cells)
    cost = fit_cost(points(cells), origin="calibration", start_seconds=5, jobs=2)
    assert cost.seconds["dense"] == pytest.approx(PLANTED, rel=1e-3)
    assert cost.worst < 1e-3
    few = fit_cost(points(sample(cells)), origin="calibration", start_seconds=5, jobs=2)
    for cell in cells:
        assert few.token_seconds(cell) == pytest.approx(float(np.dot(PLANTED, features_of(cell))), rel=0.02)


def test_no_term_is_negative() -> None:
    made = [Point(backbone="dense", features=(1.0, n, 0.0, 0.0, 0.0), seconds=1 / n) for n in (1.0, 2.0, 4.0)]
    cost = fit_cost(made, origin="calibration", start_seconds=0, jobs=1)
    assert all(term >= 0 for term in cost.seconds["dense"])


def test_finished_runs_correct_the_speeds(
    study: Callable[..., StudyConfig], data: Data, finished: Callable[..., Row]
) -> None:
    cells = {cell.id: cell for cell in build_grid(study(), data).cells}
    cost = assumed()
    some = [cell for cell in cells.values() if cell.stage == "baseline"][:3]
    rows = [finished(cell, 4.0, speed=0.5 / cost.token_seconds(cell)) for cell in some]
    twice = corrected(cost, rows, cells, 2)
    assert twice.origin == "runs" and twice.points == 3
    for cell in cells.values():
        assert twice.token_seconds(cell) == pytest.approx(2 * cost.token_seconds(cell), rel=1e-4)
    assert corrected(cost, [], cells, 2) == cost


def test_the_cost_goes_through_json() -> None:
    cost = assumed()
    assert Cost.from_dict(cost.to_dict()) == cost


def test_real_speeds_of_two_shapes(study: Callable[..., StudyConfig], tiny_store: Path) -> None:
    from retoken.study.folder import data_of

    small = study(
        budgets=(1e9,), sizes=(25_000, 38_000), batch_size=4, context_length=32, etas=(3.0,), rhos=("1",)
    )
    cells = build_grid(small, data_of(tiny_store)).cells
    baseline = [cell for cell in cells if cell.variant == "baseline"][:2]
    cost = calibrate(baseline, small, data=tiny_store, jobs=1)
    assert cost.points == 2 and cost.start_seconds > 0
    assert 1e-7 < cost.token_seconds(baseline[0]) < 1e-2
