"""`retoken scaling fit | predict | plot` as a user runs them."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retoken.scaling.planted import KAPLAN, POWER, decade
from retoken.scaling.runs import write
from retoken.scaling.synthetic import Noise, draw

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of Kaplan's law with noise."""
    path = tmp_path_factory.mktemp("scaling") / "runs.csv"
    write(path, draw(KAPLAN, {"mort": POWER}, decade(), Noise(), 0))
    return path


@pytest.fixture
def fitted(table: Path, cli: Cli) -> Path:
    """A fit to it."""
    path = table.with_name("fit.json")
    if not path.exists():
        assert cli("scaling", "fit", table, "--draws", 60, "--hold-out", 0, "--out", path).code == 0
    return path


def test_a_fit_finds_the_law(table: Path, cli: Cli) -> None:
    done = cli("scaling", "fit", table, "--json", "--draws", 100)
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    for name in ("A", "B", "alpha", "beta"):
        low, high = found["constants"][name]["interval"]
        assert low < getattr(KAPLAN, name) < high
    (exponent,) = {found["frontier"]["loss_exponent"]["value"]}
    assert exponent == pytest.approx(0.072, abs=0.002)
    assert len(found["gains"]["mort"]["settings"]) == 5
    assert found["warnings"] == []
    assert found["flops"]["counted_over_6nd"] == pytest.approx([1, 1])
    forms = {(row["law"], row["form"]) for row in found["held_out"]}
    assert len(forms) == 8
    assert found["isocompute"]["loss_exponent"] == pytest.approx(0.072, abs=0.003)


def test_a_fit_is_told_in_words(table: Path, cli: Cli) -> None:
    said = cli("scaling", "fit", table, "--draws", 60).out
    for words in ("120 runs of synthetic", "alpha", "gamma: mort power", "isocompute parabola", "held out"):
        assert words in said


def test_a_prediction_from_a_fit(fitted: Path, cli: Cli) -> None:
    words = ("scaling", "predict", fitted, "--variant", "mort", "--eta", 50, "--rho", 0.6)
    forward = json.loads(cli(*words, "--compute", 5e14, "--json").out)
    assert forward["loss"]["interval"][0] < forward["loss"]["value"] < forward["loss"]["interval"][1]
    backward = json.loads(cli(*words, "--loss", forward["loss"]["value"], "--json").out)
    assert backward["compute"]["value"] == pytest.approx(5e14, rel=1e-6)
    assert forward["warnings"] == [] and forward["fit_warnings"] == []
    said = cli(*words, "--compute", 1e19).out
    assert "far outside" in said and "table parameters N_n" in said and "loss of one run" in said
    attached = json.loads(cli(*words, "--compute", 5e14, "--attached", "--json").out)
    assert attached["reduction"]["value"] < forward["reduction"]["value"]


def test_the_published_numbers(cli: Cli) -> None:
    found = json.loads(cli("scaling", "predict", "--published", "--json").out)
    for cell in found["tables"]:
        ours = cell["predicted"]["power"]
        assert ours["loss_reduction"] == pytest.approx(cell["loss_reduction"], abs=0.0075)
        assert ours["compute_ratio"] == pytest.approx(cell["compute_ratio"], abs=0.0075)
    said = cli("scaling", "predict", "--published").out
    assert "31.0 %" in said and "35.2 %" in said and "0.0380" in said


def test_figures_are_drawings_that_stand_alone(table: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("scaling", "plot", table, "--draws", 40, "--out", tmp_path / "figures", "--json")
    files = json.loads(done.out)["files"]
    assert list(files) == ["isocompute", "frontier", "eta", "rho", "size", "residuals"]
    for path in files.values():
        text = Path(path).read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert root.tag.endswith("svg") and float(root.attrib["width"]) > 100
        used = set(re.findall(r"var\((--[\w-]+)\)", text))
        assert used and all(f"{name}:" in text for name in used)
    again = json.loads(
        cli("scaling", "plot", table, "--draws", 40, "--out", tmp_path / "again", "--json").out
    )
    for name, path in files.items():
        assert Path(path).read_bytes() == Path(again["files"][name]).read_bytes()


def test_a_figure_without_anything_to_show_is_left_out(cli: Cli, tmp_path: Path) -> None:
    one = draw(KAPLAN, {"mort": POWER}, decade(attached={"mort": ((50.0, 1.0),)}), Noise(), 0)
    write(tmp_path / "runs.csv", one)
    done = cli("scaling", "plot", tmp_path / "runs.csv", "--draws", 0, "--out", tmp_path / "out")
    assert done.code == 0 and "eta, rho" in done.out
    base = one.pick(np.flatnonzero(one.eta == 0))
    write(tmp_path / "base.csv", base)
    assert cli("scaling", "plot", tmp_path / "base.csv", "--draws", 0, "--out", tmp_path / "out").code == 0
    assert cli("scaling", "fit", tmp_path / "base.csv", "--draws", 0).code == 0


def test_counted_flops_may_be_what_a_budget_is_in(table: Path, cli: Cli) -> None:
    found = json.loads(cli("scaling", "fit", table, "--flops", "counted", "--draws", 0, "--json").out)
    assert found["flops"]["counted"] is True
    assert (found["flops"]["scale"], found["flops"]["power"]) == pytest.approx((6, 1))
    assert found["constants"]["alpha"]["interval"] is None


def test_parameters_may_be_counted_and_predictions_say_so(table: Path, cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "fit.json"
    done = cli("scaling", "fit", table, "--params", "counted", "--draws", 0, "--hold-out", 0, "--out", out)
    assert done.code == 0 and "N_c is counted FLOPs a token over 6" in done.out
    said = cli("scaling", "predict", out, "--compute", 1e15).out
    assert "N_c is counted FLOPs a token over 6" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("fit", "none.csv"), "cannot be read"),
        (("fit", "TABLE", "--draws", 5), "draws is 5; accepted: from 20"),
        (("fit", "TABLE", "--draws", -1), "--draws is -1"),
        (("fit", "TABLE", "--level", 2), "--level is 2"),
        (("fit", "TABLE", "--hold-out", 9), "9 largest budgets of 5"),
        (("fit", "TABLE", "--hold-out", -1), "--hold-out is -1"),
        (("fit", "TABLE", "--backbone", "moe"), "'moe' is not among the runs; accepted: synthetic"),
        (("fit", "TABLE", "--law", "linear"), "linear"),
        (("fit", "TABLE", "--draws", 0, "--out", "none/fit.json"), "--out none/fit.json cannot be written"),
        (("predict",), "exactly one of the two"),
        (("predict", "FIT"), "--compute is None and --loss None"),
        (("predict", "FIT", "--compute", 1e15, "--loss", 3), "accepted: exactly one"),
        (("predict", "FIT", "--compute", 1e15, "--variant", "engram", "--eta", 3), "accepted: mort"),
        (("predict", "FIT", "--loss", 3, "--attached"), "accepted: with --compute"),
        (("predict", "TABLE", "--compute", 1e15), "not JSON"),
        (("predict", "FIT", "--published"), "exactly one of the two"),
        (("plot", "TABLE"), "--out"),
        (("plot", "TABLE", "--draws", 0, "--out", "TABLE"), "cannot be written"),
    ],
)
def test_mistakes_are_told_in_one_line(words: tuple, said: str, table: Path, fitted: Path, cli: Cli) -> None:
    named = {"TABLE": table, "FIT": fitted}
    done = cli("scaling", *(named.get(str(word), word) for word in words))
    assert done.code == 2 and done.out == ""
    assert said in done.err and done.err.count("\n") == 1


def test_a_bad_row_is_named(table: Path, cli: Cli, tmp_path: Path) -> None:
    lines = table.read_text().splitlines()
    cells = lines[4].split(",")
    cells[lines[0].split(",").index("loss")] = "nan"
    (tmp_path / "runs.csv").write_text("\n".join([*lines[:4], ",".join(cells), *lines[5:]]) + "\n")
    done = cli("scaling", "fit", tmp_path / "runs.csv")
    assert done.code == 2
    assert "line 5, column loss: found 'nan'; accepted: a finite number above 0" in done.err
