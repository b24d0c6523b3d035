"""`retoken inspect`, and `retoken export --prune`, as a user meets them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import retoken
from retoken.cli.main import main
from retoken.eval import open_checkpoint
from retoken.inspect import Subject
from retoken.inspect.neutral import without_rows
from retoken.serving import PackedFile
from retoken.train.world import World

Cli = Callable[..., Any]
Run = Callable[[str], Path]
SMALL = ["--eval-tokens", 660, "--threads", 1]


@pytest.mark.parametrize("variant", ["retoken", "mort"])
def test_a_run_is_looked_into(cli: Cli, tiny_run: Run, tmp_path: Path, variant: str) -> None:
    page = tmp_path / "new" / "page.html"
    figure = tmp_path / "curve.svg"
    words = ["inspect", tiny_run(variant), *SMALL, "--check", 4, "--out", page, "--figure", figure, "--json"]
    code, said, err = cli(*words)
    assert (code, err) == (0, "")
    found = json.loads(said)
    assert (found["modulator"]["type"], found["vocab_size"], list(found["scales"])) == (
        variant,
        300,
        ["0", "1", "2"],
    )
    assert found["measured"]["looked_tokens"] == found["measured"]["measured_tokens"] == 10 * 32
    assert [row["real"] is not None for row in found["measured"]["checked"]] == [True] * 4
    assert bool(found["measured"]["loads"]) == (variant == "mort")
    assert "step-000003" in found["training"]["source"] and 0 < found["training"]["never_tokens"] < 300
    assert figure.read_text(encoding="utf-8").startswith("<svg ")
    html = page.read_text(encoding="utf-8")
    assert f"retoken inspect {tiny_run(variant)} --out {page}" in html and "--eval-tokens 660" in html
    assert html.count("<svg ") >= 9 and "Mean scale of" in html  # the run's probes show the course
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_without_a_store_the_tables_speak_for_themselves(cli: Cli, tiny_run: Run, tmp_path: Path) -> None:
    alone = shutil.copytree(tiny_run("retoken") / "model", tmp_path / "model")
    code, said, err = cli("inspect", alone, "--tokens", " the", "a")
    assert (code, err) == (0, "")
    assert "near ␣the" in said and "losses not measured" in said and "mean |s|" in said
    code, said, err = cli("inspect", alone, "--json")
    assert json.loads(said)["measured"] is None and json.loads(said)["training"] is None


def test_it_says_what_matters_in_words(cli: Cli, tiny_run: Run, tiny_store: Path) -> None:
    code, said, err = cli("inspect", tiny_run("mort"), "--data", tiny_store, *SMALL, "--check", 3)
    assert (code, err) == (0, "")
    for wanted in ("never trained", "without ranks", "rank correlation", "may go", "effective"):
        assert wanted in said


def test_pruned_rows_cost_what_zeroed_rows_do(
    cli: Cli, tiny_run: Run, tiny_store: Path, tmp_path: Path
) -> None:
    run, out = tiny_run("mort"), tmp_path / "pruned"
    code, said, err = cli("export", run, "--out", out, "--prune", 0.4, *SMALL, "--json")
    assert (code, err) == (0, "")
    found = json.loads(said)
    pruned, packed = found["pruned"], PackedFile(out / "rows.safetensors")
    assert (found["rows"], found["tokens"], found["kept"], pruned["left_out"]) == ("float32", 300, 180, 120)
    assert pruned["bytes_before"] == 300 * found["record_bytes"]
    assert pruned["bytes_after"] == (out / "rows.safetensors").stat().st_size < pruned["bytes_before"]
    subject = Subject.of_store(open_checkpoint(str(run)), tiny_store, World(), max_tokens=660)
    assert pruned["val_loss_before"] == pytest.approx(subject.loss(), rel=1e-6)
    assert packed.kept is not None
    with without_rows(subject.modulators.values(), (~packed.kept).nonzero().flatten()):
        assert pruned["val_loss_after"] == pytest.approx(subject.loss(), rel=1e-6)
    assert pruned["measured_tokens"] == subject.measured_tokens
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]
    code, said, _ = cli("generate", out, "--prompt", "the cat", "--max-new-tokens", 4, "--temperature", 0)
    assert code == 0 and said


def test_as_many_rows_go_as_the_loss_allows(cli: Cli, tiny_run: Run, tmp_path: Path) -> None:
    words = ["export", tiny_run("retoken") / "model", "--rows", "int8", "--fold", *SMALL]
    for name, allowed in (("all", 10), ("some", 0.002)):
        code, said, err = cli(*words, "--out", tmp_path / name, "--prune-loss", allowed, "--json")
        assert (code, err) == (0, "")
        found = json.loads(said)
        assert found["folded"] and found["rows"] == "int8"
        assert found["kept"] == 0 if name == "all" else 0 < found["kept"] < 300
        assert found["pruned"]["difference"] < allowed + 1e-4  # what was allowed, and int8
    code, said, _ = cli(*words, "--out", tmp_path / "told", "--prune", 0.5)
    assert "150 of 300 tokens (50.0 %) are without rows" in said and "as served" in said


def test_a_pruned_folder_loads_everywhere_an_artefact_does(
    cli: Cli, tiny_run: Run, tiny_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pruned"
    assert (
        main(
            ["export", str(tiny_run("retoken")), "--out", str(out), "--prune", "0.5", "--eval-tokens", "660"]
        )
        == 0
    )
    losses = []
    for tables in ("device", "host", "disk"):
        code, said, _ = cli(
            "eval", out, "--data", tiny_store, "--tables", tables, "--context-length", 32, "--json"
        )
        assert code == 0
        losses.append(json.loads(said)["val_loss"])
    assert losses[0] == losses[1] == losses[2]
    assert isinstance(retoken.load(out, "host"), torch.nn.Module)
