"""Real studies of tiny runs: done once, in order, killed and continued, one made again with the same loss."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from retoken.cli.main import main
from retoken.study.planfile import Plan

Words = Callable[..., list[str]]


def rows(out: Path) -> dict[str, dict[str, str]]:
    with (out / "runs.csv").open(newline="") as file:
        return {row["id"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study") / "whole"


@pytest.fixture
def whole(study_folder: Path, tiny: Words) -> Path:
    """A study run to its end, once for all tests here."""
    if not study_folder.exists():
        assert main(tiny("plan", study_folder)) == 0
        assert main(tiny("run", study_folder)) == 0
    return study_folder


def test_the_grid_decides_where_variants_stand(whole: Path) -> None:
    plan, found = Plan.read(whole / "plan.json"), rows(whole)
    assert not any(cell.provisional for cell in plan.cells)
    assert set(found) == {cell.id for cell in plan.cells}
    for budget in plan.study.budgets:
        grid = {r["id"]: float(r["loss"]) for r in found.values() if r["stage"] == "baseline"
                and float(r["budget"]) == budget}  # fmt: skip
        assert len(grid) == 2
        shapes = {(r["hidden_size"], r["layers"]) for r in found.values()
                  if r["stage"] == "frontier" and float(r["budget"]) == budget}  # fmt: skip
        assert len(shapes) == 1
    for cell in plan.cells:
        row = found[cell.id]
        assert (int(row["tokens"]), float(row["flops"])) == (cell.tokens, cell.flops)
        assert float(row["flops_counted"]) == pytest.approx(cell.flops_counted)
        assert (float(row["eta"]), float(row["rho"])) == (cell.eta, cell.rho)


def test_finished_runs_keep_results_and_no_weights(whole: Path) -> None:
    for folder in (whole / "runs").iterdir():
        kept = {path.name for path in folder.iterdir()}
        assert {"result.json", "metrics.jsonl"} <= kept and not kept & {"checkpoints", "model"}


def test_nothing_is_run_twice(whole: Path, tiny: Words, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "runs").glob("*/result.json")}
    assert main(tiny("run", whole, "--json")) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["waiting"] == [] and found["failed"] == {} and len(found["runs"]) == len(before)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_table_without_folders_is_enough(whole: Path, tiny: Words, tmp_path: Path) -> None:
    """What another machine has run is known by its rows."""
    for name in ("plan.json", "runs.csv"):
        shutil.copy(whole / name, tmp_path / name)
    assert main(tiny("run", tmp_path)) == 0
    assert not (tmp_path / "runs").exists()
    assert rows(tmp_path) == rows(whole)


def test_one_run_made_again_has_the_same_loss(
    whole: Path, tiny: Words, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = rows(whole)
    name = next(name for name in found if "mort" in name)
    words = tiny("run", tmp_path / "again", "--plan", str(whole / "plan.json"), "--only", name)
    assert main(words) == 0
    assert list(rows(tmp_path / "again")) == [name]
    assert rows(tmp_path / "again")[name]["loss"] == found[name]["loss"]
    assert f"{name}  loss {found[name]['loss']}" in capfd.readouterr().out


def test_going_on_needs_no_options_and_takes_no_others(
    whole: Path, tiny: Words, tiny_store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = Plan.read(whole / "plan.json").cells
    assert main(["scaling", "plan", "--out", str(whole), "--jobs", "1"]) == 0
    out = capfd.readouterr().out
    assert "best sizes" in out and "speeds: runs" in out
    assert Plan.read(whole / "plan.json").cells == before
    assert main(tiny("plan", whole, "--lr", "0.5")) == 2
    assert "plans a study with" in capfd.readouterr().err


def _start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "retoken", *words], stderr=subprocess.PIPE, text=True, env=os.environ
    )


def _until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stderr is not None
    return next(line for line in process.stderr if words in line)


def test_a_study_that_is_interrupted_and_killed_goes_on(
    tiny: Words, tiny_store: Path, tmp_path: Path
) -> None:
    """Twice in the middle of the second run; the first stays, the second ends as if it was never cut."""
    assert main(tiny("plan", tmp_path / "cut", "--budgets", "1.5e10", "--max-epochs", "1000")) == 0
    process = _start(tiny("run", tmp_path / "cut", "--stages", "baseline"))
    _until(process, "1 of ")
    first = next((tmp_path / "cut" / "runs").glob("*/result.json"))
    stamp = first.stat().st_mtime_ns
    _until(process, " step ")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert len(list((tmp_path / "cut" / "runs").glob("*/result.json"))) == 1
    process = _start(tiny("run", tmp_path / "cut", "--stages", "baseline"))
    _until(process, " step ")
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    second = next(p for p in (tmp_path / "cut" / "runs").iterdir() if p.is_dir() and p != first.parent)
    assert not (second / "result.json").exists()
    began = time.monotonic()
    assert main(tiny("run", tmp_path / "cut", "--stages", "baseline")) == 0
    assert time.monotonic() - began < 120
    assert first.stat().st_mtime_ns == stamp
    found = rows(tmp_path / "cut")
    assert len(found) == 2
    plan = str(tmp_path / "cut" / "plan.json")
    assert main(tiny("run", tmp_path / "uncut", "--plan", plan, "--only", second.name)) == 0
    assert rows(tmp_path / "uncut")[second.name]["loss"] == found[second.name]["loss"]


def test_a_run_that_fails_is_named_and_the_others_go_on(
    tiny: Words, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny("plan", tmp_path / "bad")) == 0
    plan = Plan.read(tmp_path / "bad" / "plan.json")
    cell = plan.order(plan.cells)[0]
    foreign = tmp_path / "bad" / "runs" / cell.id
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").write_text("mine")
    assert main(tiny("run", tmp_path / "bad", "--stages", "baseline")) == 2
    err = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"1 run(s) failed, first {cell.id}" in err and "something else" in err
    assert len(rows(tmp_path / "bad")) == 1
    assert (foreign / "notes.txt").read_text() == "mine"


def test_time_that_is_up_begins_nothing(tiny: Words, tmp_path: Path) -> None:
    assert main(tiny("plan", tmp_path / "late")) == 0
    assert main(tiny("run", tmp_path / "late", "--hours", "1e-9")) == 0
    assert not (tmp_path / "late" / "runs").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "no-such-run"], "only has 'no-such-run'"),
        (["--stages", "fourth"], "stages has 'fourth'"),
        (["--hours", "-1"], "hours -1.0"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--plan", "nowhere.json"], "nowhere.json"),
    ],
)
def test_mistakes_are_one_line(
    whole: Path, tiny: Words, capfd: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(tiny("run", whole, *words)) == 2
    err = capfd.readouterr().err.strip()
    assert said in err and "\n" not in err


def test_without_a_plan_nothing_is_run(
    tiny: Words, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny("run", tmp_path / "none")) == 2
    assert "plan.json does not exist; accepted: the --out of `retoken scaling plan`" in capfd.readouterr().err
    assert main(["scaling", "plan", "--out", str(tmp_path / "none"), "--budgets", "1e9"]) == 2
    assert "data is missing" in capfd.readouterr().err
    assert not (tmp_path / "none").exists()


def test_two_at_once_are_refused(whole: Path, tiny: Words, capfd: pytest.CaptureFixture[str]) -> None:
    from retoken.study.folder import StudyFolder

    with StudyFolder(whole).held():
        assert main(tiny("run", whole)) == 2
    assert "another process runs this study" in capfd.readouterr().err
