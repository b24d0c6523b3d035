"""What a study writes is what laws are fitted to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retoken.scaling.fit import fit
from retoken.scaling.laws import Kaplan
from retoken.scaling.runs import Runs, read
from retoken.study.cell import CONTROLS, Cell
from retoken.study.config import StudyConfig
from retoken.study.grid import Data, build_grid
from retoken.study.table import Row, write_rows

LAW = Kaplan(A=3e9, B=2e7, alpha=0.12, beta=0.2)


@pytest.fixture
def cells(study: Callable[..., StudyConfig], data: Data) -> tuple[Cell, ...]:
    return build_grid(study(at="all", control_budgets=(6e11,)), data).cells


@pytest.fixture
def runs(cells: tuple[Cell, ...], finished: Callable[..., Row], tmp_path: Path) -> Runs:
    rows = [finished(cell, float(LAW.loss(cell.compute_params, cell.tokens))) for cell in cells]
    write_rows(tmp_path / "runs.csv", rows)
    return read(tmp_path / "runs.csv")


def test_every_run_is_read_with_its_counted_flops(cells: tuple[Cell, ...], runs: Runs) -> None:
    assert len(runs) == len(cells)
    assert np.allclose(runs.flops, [cell.flops_counted for cell in cells])
    assert np.allclose(runs.eta, [cell.eta for cell in cells])


def test_a_law_is_found_again_in_the_grid(cells: tuple[Cell, ...], runs: Runs) -> None:
    assert any(cell.stage in CONTROLS for cell in cells)
    found = fit(runs.of_variant("baseline")).law
    assert isinstance(found, Kaplan)
    assert (found.alpha, found.beta) == pytest.approx((LAW.alpha, LAW.beta), rel=1e-3)
