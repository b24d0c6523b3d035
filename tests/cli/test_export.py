"""`retoken export`: from a training checkpoint to what `from_pretrained` loads; and `--model` with one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
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
