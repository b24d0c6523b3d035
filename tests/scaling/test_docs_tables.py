"""docs/scaling.md says what the studies' files and the published numbers say."""

import csv
import re
import runpy
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from retoken.scaling import published
from retoken.scaling.gamma import FORMS
from retoken.scaling.runs import COLUMNS, Runs, write

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def rows(name: str) -> list[dict[str, str]]:
    """Of a study's file."""
    with (ROOT / "studies" / "scaling" / name).open(newline="") as file:
        return list(csv.DictReader(file))


def test_coverage() -> None:
    shares: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows("coverage.csv"):
        assert row["draws"] == "200" and row["undefined"] == "0"
        if row["kind"] == "percentile":
            shares[row["scenario"], row["method"]].append(float(row["share"]))
    for scenario in {name for name, _ in shares}:
        cells = [scenario]
        for method in ("wild", "runs"):
            found = shares[scenario, method]
            cells += [f"{sum(found) / len(found):.1%}", f"{min(found):.1%}"]
        assert f"| {' | '.join(cells)} |" in PAGE


def test_the_parabolas_bias() -> None:
    for row in rows("parabola.csv"):
        number = {key: float(value) for key, value in row.items() if key not in ("law", "sizes", "method")}
        if row["method"] == "joint fit":
            assert abs(number["params_off"]) < 1e-6 and abs(number["loss_off_at_100_c"]) < 1e-6
            continue
        cells = (
            row["law"],
            row["sizes"],
            f"{number['size_exponent']:.4f} ({number['planted_size_exponent']:.4f})",
            f"{number['loss_exponent']:.5f} ({number['planted_loss_exponent']:.5f})",
            f"{number['params_off']:.1%}",
            f"{number['params_off_at_100_c']:+.1%}",
            f"{number['loss_off_at_100_c']:+.2%}",
        )
        assert f"| {' | '.join(cells)} |" in PAGE


def test_the_published_tables() -> None:
    fits = {form: published.fit_tables(form) for form in FORMS}
    for form, found in fits.items():
        exponent = f"{found.exponent:.4f}".removeprefix("0")
        assert f"| {form} | {exponent} | {found.worst:.2f} |" in PAGE
    power = fits["power"]
    for cell in (*published.TABLE_6, *published.TABLE_7[:2]):
        reduction, ratio = power.loss_reduction(cell.eta, cell.rho), power.compute_ratio(cell.eta, cell.rho)
        line = (
            f"| {cell.eta:g} | {cell.rho:.1f} | {cell.loss_reduction:.2f} | {reduction:.3f} | "
            f"{cell.compute_ratio:.2f} | {ratio:.4f} |"
        )
        assert line in PAGE


def test_jtoks_lines() -> None:
    for C in (3e18, 3e19, 3e20):
        found = published.jtok_saving(C)
        gap = f"{found.gap:.4f}".removeprefix("0")
        cells = (gap, f"{found.loss_reduction:.2f} %", f"{found.compute_saved:.1f} %")
        assert f"| {C:.0e} | {' | '.join(cells)} |".replace("e+", "e") in PAGE


def test_the_pages_python_runs(noisy: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "runs.csv", noisy)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, "block", "exec"), names)
    assert names["mort"].loss.interval.holds(names["mort"].loss.value)


def test_every_column_is_on_the_page() -> None:
    assert [name for name in COLUMNS if f"`{name}`" not in PAGE] == []


def test_the_studys_results_are_those_of_its_runs(capsys: pytest.CaptureFixture[str]) -> None:
    study = ROOT / "studies" / "scaling"
    runpy.run_path(str(study / "summary.py"), run_name="__main__")
    assert capsys.readouterr().out == (study / "results.md").read_text(encoding="utf-8")
