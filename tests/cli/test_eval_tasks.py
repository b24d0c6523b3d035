"""`retoken eval --tasks`: what it says, and what it leaves."""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retoken.cli.eval_view import as_values, print_report
from retoken.eval.differences import Against, Difference
from retoken.eval.scores import Score
from retoken.eval.tasks import TasksReport, default_out

Cli = Callable[..., Any]
Run = Callable[[str], Path]


def _score(name: str, metric: str, value: float, bits: float | None = None, cut: int = 0) -> Score:
    return Score(
        name=name,
        n=1172,
        metric=metric,
        value=value,
        stderr=0.0123,
        gold_bits_per_byte=bits,
        metrics={metric: value},
        cut=cut,
    )


@pytest.fixture
def report() -> TasksReport:
    found = (_score("arc_challenge", "acc_norm", 0.25, 1.5), _score("sciq", "acc", 0.75, 0.5, cut=3))
    change = Difference(mean=-0.01, low=-0.02, high=0.005)
    return TasksReport(
        checkpoint="run/model",
        asked=("arc_challenge", "sciq", "reasoning"),
        out=Path("run-tasks"),
        settings={"harness": "lm-eval 1.2", "dtype": "float32", "limit": 9, "data": "packages"},
        scores=found,
        against=Against(name="base", metric={"sciq": change}, bits={}, mean=None, mean_bits=change),
    )


def test_the_table_has_values_differences_and_what_to_know(
    report: TasksReport, capsys: pytest.CaptureFixture[str]
) -> None:
    print_report(report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["arc_challenge", "1,172", "acc_norm", "0.2500", "0.0123", "1.5000"]
    sciq = ["sciq", "1,172", "acc", "0.7500", "0.0123", "-0.0100", "-0.0200", "to", "+0.0050", "0.5000"]
    assert lines[2].split() == sciq
    assert lines[3].split() == ["mean", "0.5000", "-0.0100", "-0.0200", "to", "+0.0050"]
    told = "\n".join(lines[4:])
    for part in (
        "the first 9 documents",
        "to base",
        "the validation split",
        "without C3",
        "sciq: 3 requests",
    ):
        assert part in told
    print_report(dataclasses.replace(report, against=None))
    assert "95 %" not in capsys.readouterr().out


def test_json_has_everything(report: TasksReport) -> None:
    found = json.loads(json.dumps(as_values(report)))
    one, two = found["tasks"]
    assert one["difference"] is None and two["difference"] == {"mean": -0.01, "low": -0.02, "high": 0.005}
    assert found["mean"] == 0.5 and found["mean_difference"] is None
    assert found["settings"]["harness"] == "lm-eval 1.2" and found["against"] == "base"


def test_results_lie_beside_the_checkpoint(tmp_path: Path) -> None:
    assert default_out(str(tmp_path / "run"), 0) == tmp_path / "run-tasks"
    assert default_out(str(tmp_path / "run") + "/", 20) == tmp_path / "run-tasks-limit-20"
    assert default_out("hf:org/name", 0) == Path("out/eval/org--name-tasks")


def test_without_the_harness_the_extra_is_named(
    cli: Cli, tiny_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else find(name))
    run = tiny_run("mort")
    code, out, err = cli("eval", run, "--tasks", "paper")
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert "has no lm_eval; accepted: its packages, which the extra `eval`" in err
    assert not default_out(str(run), 0).exists()
