"""`retoken export`: from a training checkpoint to what `from_pretrained` loads; and `--model` with one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

Cli = Callable[..., Any]
Run = Callable[[str], Path]


@pytest.mark.parametrize("where", ["", "checkpoints/step-000003"])
def test_a_run_s_checkpoint_becomes_its_model_folder(
    cli: Cli, tiny_run: Run, tmp_path: Path, where: str
) -> None:
    run, out = tiny_run("mort"), tmp_path / "new" / "model"
    code, said, err = cli("export", run / where, "--out", out, "--json")
    assert (code, err) == (0, "")
    found = json.loads(said)
    assert (found["step"], found["world_size"], found["tokenizer"]) == (3, 1, True)
    assert found["files"] == ["model.safetensors"] and found["out"] == str(out)
    # The loop writes RUN/model on the same path; here the whole of it is compared, tokenizer included.
    ours, theirs = ({path.name: path.read_bytes() for path in f.iterdir()} for f in (out, run / "model"))
    assert ours == theirs
    model: Any = AutoModelForCausalLM.from_pretrained(out)
    assert found["bytes"] == sum(p.nbytes for p in model.parameters())
    assert len(AutoTokenizer.from_pretrained(out)) == 300


def test_it_says_what_it_wrote_and_divides_what_is_large(cli: Cli, tiny_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "model"
    code, said, err = cli("export", tiny_run("retoken"), "--out", out, "--max-shard-size", "500KB")
    assert (code, err) == (0, "")
    files = sorted(path.name for path in out.glob("model-*.safetensors"))
    assert len(files) > 1 and (out / "model.safetensors.index.json").is_file()
    assert f"in {len(files)} files" in said and "step-000003, written by 1 process\n" in said
    AutoModelForCausalLM.from_pretrained(out)


def test_a_checkpoint_whose_data_has_moved_on_is_exported_without_tokenizer(
    cli: Cli, tiny_run: Run, tmp_path: Path
) -> None:
    import shutil

    lonely = shutil.copytree(tiny_run("mort") / "checkpoints" / "step-000003", tmp_path / "lonely")
    code, said, err = cli("export", lonely, "--out", tmp_path / "model")
    assert (code, err) == (0, "")
    assert "without a tokenizer" in said
    assert not list((tmp_path / "model").glob("tokenizer*"))


def test_a_training_checkpoint_is_a_pretrained_backbone_too(
    cli: Cli, tiny_run: Run, tiny_store: Path, tmp_path: Path
) -> None:
    start = tiny_run("baseline") / "checkpoints" / "step-000003"
    small = ["--steps", 1, "--batch-size", 4, "--context-length", 32, "--lr", 1e-12, "--eval-tokens", 400]
    code, said, err = cli(
        "train", "--model", start, "--data", tiny_store, "--out", tmp_path / "run", *small, "--json"
    )
    assert (code, err.count("Error")) == (0, 0)
    code, before, _ = cli("eval", start, "--data", tiny_store, "--max-tokens", 400, "--json")
    assert code == 0
    assert json.loads(said)["val_loss"] == pytest.approx(json.loads(before)["val_loss"], rel=1e-4)


def test_rows_are_folded_packed_and_measured(
    cli: Cli, tiny_run: Run, tiny_store: Path, tmp_path: Path
) -> None:
    run, out = tiny_run("mort"), tmp_path / "new" / "artifact"
    code, said, err = cli("export", run, "--out", out, "--fold", "--rows", "int8", "--json", "--threads", 1)
    assert (code, err) == (0, "")
    found = json.loads(said)
    assert (found["rows"], found["folded"], found["tokens"], found["tokenizer"]) == ("int8", True, 300, True)
    assert found["rows_bytes"] == (out / "rows.safetensors").stat().st_size
    types = [cost["rows"] for cost in found["losses"]]
    assert types == ["as trained", "float32", "bfloat16", "int8", "float8_e4m3"]
    assert [cost["rows"] for cost in found["losses"] if cost["chosen"]] == ["int8"]
    trained = found["losses"][0]["val_loss"]
    assert trained == pytest.approx(json.loads((run / "result.json").read_text())["val_loss"], rel=1e-5)
    for cost in found["losses"]:
        assert cost["difference"] == pytest.approx(cost["val_loss"] - trained, abs=1e-12)
        assert abs(cost["difference"]) < 1e-3
    code, again, err = cli("eval", out, "--data", tiny_store, "--context-length", 32, "--json")
    assert (code, err) == (0, "")
    assert json.loads(again)["val_loss"] == pytest.approx(found["losses"][3]["val_loss"], rel=1e-6)
    assert len(AutoTokenizer.from_pretrained(out)) == 300
    assert [path.name for path in out.parent.iterdir()] == ["artifact"]


@pytest.mark.parametrize("tables", ["", "device", "host", "disk"])
def test_an_artefact_is_evaluated_and_generates_from_any_tier(
    cli: Cli, tiny_run: Run, tiny_store: Path, tmp_path: Path, tables: str
) -> None:
    out, run = tmp_path / "artifact", tiny_run("retoken")
    code, said, _ = cli("export", run / "model", "--out", out, "--fold", "--loss", "off")
    assert code == 0 and "rows in float32" in said and "not measured" in said
    where = ["--tables", tables] if tables else []
    options = ["--data", tiny_store, "--context-length", 32, "--json"]
    losses = [json.loads(cli("eval", *words, *options).out)["val_loss"] for words in ([run], [out, *where])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    texts = [
        cli("generate", *words, "--prompt", "the cat", "--max-new-tokens", 8, "--temperature", 0)
        for words in ([run], [out, *where])
    ]
    assert texts[0].out == texts[1].out and [text.code for text in texts] == [0, 0]
    assert ("bytes a record" in texts[1].err) == bool(tables)


def test_a_model_folder_is_served_from_a_file_that_is_made_for_it(
    cli: Cli, tiny_run: Run, tiny_store: Path, tmp_path: Path
) -> None:
    run, rows = tiny_run("mort"), tmp_path / "rows"
    options = ["--data", tiny_store, "--json"]
    placed = cli("eval", run, *options, "--tables", "disk", "--rows-path", rows)
    assert (placed.code, placed.err) == (0, "")
    found = json.loads(placed.out)["val_loss"]
    assert found == pytest.approx(json.loads(cli("eval", run, *options).out)["val_loss"], rel=1e-6)
    assert rows.is_file()


@pytest.mark.parametrize("tables", ["", "host"])
def test_fetched_rows_are_compared_with_a_folders(
    cli: Cli, tiny_run: Run, tiny_store: Path, tmp_path: Path, tables: str
) -> None:
    where = ["--tables", tables] if tables else []
    right, packed = tiny_run("mort") / "model", tmp_path / "int8"
    assert cli("export", right, "--out", packed, "--rows", "int8", "--loss", "off").code == 0
    options = ["--data", tiny_store, "--json", "--max-tokens", 64]
    assert cli("eval", packed, *options, *where, "--verify", right).code == 0
    assert cli("eval", right, *options, *where, "--verify", right).code == 0
    other = tmp_path / "other"
    shutil.copytree(right, other)
    tensors = load_file(other / "model.safetensors")
    tensors["retoken.layers.1.table"][:, 0] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    code, _, err = cli("eval", packed, *options, *where, "--verify", other)
    assert code == 2 and "differ from those they were made of" in err


@pytest.mark.parametrize("kind", ["retoken", "mort"])
def test_folded_rows_are_compared_with_those_they_were_folded_from(
    cli: Cli, tiny_run: Run, tiny_store: Path, tmp_path: Path, kind: str
) -> None:
    source, packed = tiny_run(kind) / "model", tmp_path / "folded"
    assert cli("export", source, "--out", packed, "--fold", "--rows", "int8", "--loss", "off").code == 0
    options = ["--data", tiny_store, "--json", "--max-tokens", 64]
    assert cli("eval", packed, *options, "--verify", source).code == 0
    tensors = load_file(source / "model.safetensors")
    tensors["retoken.layers.1.table"][:, ..., 0] += 1
    shutil.copytree(source, tmp_path / "other")
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    code, _, err = cli("eval", packed, *options, "--verify", tmp_path / "other")
    assert code == 2 and "differ from those they were made of" in err


def test_rows_of_another_shape_are_not_compared(
    cli: Cli, tiny_run: Run, tiny_store: Path, tmp_path: Path
) -> None:
    packed = tmp_path / "int8"
    assert cli("export", tiny_run("mort"), "--out", packed, "--rows", "int8", "--loss", "off").code == 0
    code, _, err = cli("eval", packed, "--data", tiny_store, "--verify", tiny_run("retoken") / "model")
    assert code == 2 and "of another model: {'rows_per_token': None" in err


def test_the_loss_alone_chooses_int8(cli: Cli, tiny_run: Run, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    code, said, err = cli("export", tiny_run("retoken"), "--out", out, "--loss", "on", "--eval-tokens", 500)
    assert (code, err) == (0, "")
    assert "rows in int8" in said and "folded" not in said
    marked = [line.split()[0] for line in said.splitlines() if line.endswith("<- written")]
    assert marked == ["int8"]


def test_what_packed_exports_cannot_do_is_refused(cli: Cli, tiny_run: Run, tmp_path: Path) -> None:
    run, out = tiny_run("mort"), tmp_path / "artifact"
    for words, what in (
        ([tiny_run("baseline"), "--fold"], "run-baseline/checkpoints/step-000003 carries no token"),
        ([tiny_run("baseline"), "--rows", "int8"], "carries no token"),
        ([run, "--rows", "int8", "--max-shard-size", "1GB"], "--max-shard-size is 1GB"),
        ([run, "--rows", "int8", "--data", tmp_path / "none"], "none"),
        ([run, "--data", tmp_path, "--loss", "off"], "--loss is off"),
        ([run, "--rows", "int8", "--eval-tokens", -1], "--eval-tokens is -1"),
        ([tmp_path / "none", "--rows", "int8"], "is no folder"),
    ):
        code, said, err = cli("export", *words, "--out", out)
        assert (code, said) == (2, "") and what in err, (words, err)
    assert list(tmp_path.iterdir()) == []


def test_a_training_checkpoint_is_not_placed(cli: Cli, tiny_run: Run, tiny_store: Path) -> None:
    step = tiny_run("mort") / "checkpoints" / "step-000003"
    code, _, err = cli("eval", step, "--data", tiny_store, "--tables", "host")
    assert code == 2 and "retoken export makes one" in err


def test_where_rows_are_is_told(cli: Cli, tiny_run: Run, tiny_store: Path) -> None:
    told = cli("eval", tiny_run("mort"), "--data", tiny_store, "--max-tokens", 64, "--tables", "host")
    assert told.code == 0 and "bytes a record" in told.err and "host" in told.err
