"""The job itself, with real runs in real processes: done once, told, interrupted, resumed, refused."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from retoken.cli.main import main
from retoken.compare.runs import read_token_loss

SMALL = [
    "--steps",
    "4",
    "--batch-size",
    "4",
    "--context-length",
    "32",
    "--eval-tokens",
    "512",
    "--threads",
    "1",
]


@pytest.fixture(scope="module")
def comparison(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants, one seed, four steps, both at once."""
    out = tmp_path_factory.mktemp("job") / "comparison"
    words = ["compare", "demo", "--variants", "baseline", "mort", "--seeds", "0", "--jobs", "2", *SMALL]
    assert main([*words, "--data", str(tiny_store), "--out", str(out)]) == 0
    return out


def again(comparison: Path, tiny_store: Path, *words: str) -> list[str]:
    start = ["compare", "demo", "--variants", "baseline", "mort", "--seeds", "0", *SMALL]
    return [*start, "--data", str(tiny_store), "--out", str(comparison), *words]


def test_everything_is_there(comparison: Path) -> None:
    found = json.loads((comparison / "results.json").read_text())
    assert [(run["name"], run["seed"], run["tokens"]) for run in found["runs"]] == [
        ("baseline", 0, 512), ("mort", 0, 512),
    ]  # fmt: skip
    assert found["runs"][1]["table_params"] > 0 == found["runs"][0]["table_params"]
    page = (comparison / "report.html").read_text()
    command = "retoken compare demo --variants baseline mort --seeds 0"
    assert command in page and "one seed is no verdict" in page
    assert not list((comparison / "runs").glob("*.log"))


def test_rivals_store_what_they_are_told_to(tiny_store: Path, tmp_path: Path) -> None:
    """The same job with rivals: each attached as its folder says, of the size that was asked for."""
    names = ["baseline", "additive", "retoken_bigram", "retoken_both", "engram", "wide"]
    words = ["compare", "demo", "--variants", *names, "--wide", "llama-80x3", "--size", "2", "--seeds", "0"]
    words += ["--data", str(tiny_store), "--out", str(tmp_path / "rivals"), "--jobs", "2", *SMALL]
    assert main(words) == 0
    runs = {run["name"]: run for run in json.loads((tmp_path / "rivals/results.json").read_text())["runs"]}
    assert list(runs) == names
    rows = 300 * 3 * 64  # a number for each token, layer and channel
    assert runs["additive"]["table_params"] == rows
    assert {runs[name]["table_params"] for name in ("retoken_bigram", "retoken_both", "engram")} == {2 * rows}
    assert runs["wide"]["table_params"] == 0
    assert runs["wide"]["backbone_params"] > runs["baseline"]["backbone_params"]
    page = (tmp_path / "rivals/report.html").read_text()
    assert "ReToken by bigram" in page and "--wide llama-80x3" in page and "--size 2.0" in page


def test_variants_saw_the_same_held_out_text_and_continued_the_same_prompts(comparison: Path) -> None:
    runs = [comparison / "runs" / name for name in ("baseline-seed0", "mort-seed0")]
    counts = [read_token_loss(run) for run in runs]
    assert counts[0] is not None and counts[1] is not None
    assert (counts[0][1] == counts[1][1]).all()
    samples = [json.loads((run / "samples.json").read_text())["samples"] for run in runs]
    assert [sample["prompt"] for sample in samples[0]] == [sample["prompt"] for sample in samples[1]]
    assert len(samples[0]) > 1


def test_finished_runs_are_not_run_again(
    comparison: Path, tiny_store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [
        run / name for run in (comparison / "runs").iterdir() for name in ("result.json", "metrics.jsonl")
    ]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert main(again(comparison, tiny_store, "--json")) == 0
    assert {path: path.stat().st_mtime_ns for path in files} == before
    out = json.loads(capfd.readouterr().out)
    assert out["missing"] == [] and len(out["runs"]) == 2
    assert out["summary"]["effects"][0]["verdict"] == "undecided"


def test_the_report_can_be_made_again(comparison: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = (comparison / "report.html").read_text()
    for name in ("report.html", "results.json", "curves.csv"):
        (comparison / name).unlink()
    assert main(["compare", "--report-only", str(comparison)]) == 0
    assert (comparison / "report.html").read_text() == before
    out = capfd.readouterr().out
    assert "held-out loss" in out and str(comparison / "report.html") in out


def test_a_broken_finished_run_is_named_and_kept(
    comparison: Path, tiny_store: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = comparison / "runs" / "mort-seed0" / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    try:
        assert main(again(comparison, tiny_store)) == 2
    finally:
        path.write_bytes(whole)
    err = capfd.readouterr().err.strip().splitlines()[-1]
    assert "mort-seed0/metrics.jsonl" in err and "delete the run's folder" in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--variants", "baseline", "jtok"], "variants has 'jtok'; accepted: baseline, retoken, mort"),
        (["--seeds", "1", "1"], "seeds has 1 twice"),
        (["--lr", "0.7"], "lr 0.003, not 0.7"),
        (["--mort.top-k", "2"], "modulators.mort.top_k 3, not 2"),
        (["--mort.top-k", "9"], "top_k"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--lr", "-1"], "lr is -1.0"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    comparison: Path, tiny_store: Path, capfd: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    assert main(again(comparison, tiny_store, *words)) == 2
    err = capfd.readouterr().err.strip()
    assert named in err and "\n" not in err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["compare"], "preset is missing"),
        (["compare", "no-such-preset"], "no-such-preset"),
        (["compare", "--report-only", "nowhere"], "nowhere holds no comparison"),
    ],
)
def test_mistakes_before_anything_is_read(
    capfd: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    assert main(words) == 2
    err = capfd.readouterr().err.strip()
    assert named in err and "\n" not in err


def test_what_a_run_refuses_reaches_the_caller(
    tiny_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [
        "compare",
        "demo",
        "--variants",
        "baseline",
        "--seeds",
        "0",
        "--steps",
        "1",
        "--batch-size",
        "100000",
    ]
    assert main([*words, "--data", str(tiny_store), "--out", str(tmp_path / "out")]) == 2
    err = capfd.readouterr().err.strip().splitlines()[-1]
    assert "run baseline-seed0: " in err and "split train" in err


def _until(lines: Iterator[str], words: str) -> str:
    return next(line for line in lines if words in line)


def test_interrupted_runs_keep_a_checkpoint_and_go_on_from_it(tiny_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "long"
    words = [*again(out, tiny_store), "--variants", "retoken", "--steps", "100000", "--eval-every", "20"]
    for start in ("step 0/100000", "step "):
        process = subprocess.Popen(
            [sys.executable, "-m", "retoken", *words], stderr=subprocess.PIPE, text=True, env=os.environ
        )
        assert process.stderr is not None
        lines = iter(process.stderr)
        first = _until(lines, "start")
        first = first if "step" in first else _until(lines, "step")
        assert start in first
        _until(lines, "held-out")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
        assert "Traceback" not in rest and rest.strip().endswith("interrupted")
        assert list((out / "runs" / "retoken-seed0" / "checkpoints").glob("step-*"))
    assert "step 0/" not in first
