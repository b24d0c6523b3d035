"""Every example runs as it is printed in the documentation, and says that the loss falls."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from retoken.eval import open_checkpoint
from retoken.testing import tiny_model

EXAMPLES = Path(__file__).parent.parent / "examples"


def _run(name: str, *words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script with its arguments, in this process: importing everything anew takes longer than it does."""
    monkeypatch.setattr(sys, "argv", [name, *words])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def _losses(output: str) -> list[float]:
    return [float(found) for found in re.findall(r"loss\s+([\d.]+)", output)]


def test_every_example_is_tested_here() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_file()) == [
        "01_attach.py",
        "02_pretrained.py",
        "03_train_cli.sh",
    ]


def test_01_attach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _run("01_attach.py", str(tmp_path / "model"), monkeypatch=monkeypatch)
    output = capsys.readouterr().out
    losses = _losses(output)
    assert losses[-1] < losses[0] / 2
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert "Peter Piper" in output


def test_02_pretrained(
    tmp_path: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model("llama", vocab_size=300, max_position_embeddings=512)
    model.save_pretrained(tmp_path / "pretrained")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "pretrained" / name).write_bytes((tiny_store / "tokenizer" / name).read_bytes())
    (tmp_path / "text.txt").write_text("the cat sees a house and the dog runs under trees. " * 20)
    monkeypatch.chdir(tmp_path)
    _run("02_pretrained.py", "pretrained", "text.txt", "with_tables", monkeypatch=monkeypatch)
    losses = _losses(capsys.readouterr().out)
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.1
    assert open_checkpoint(str(tmp_path / "with_tables")).tokenizer is not None


def test_03_train_cli(tmp_path: Path) -> None:
    # The `retoken` command of this very environment, also where it is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", str(EXAMPLES / "03_train_cli.sh"), "out"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bits per byte" in done.stdout
    assert (tmp_path / "out" / "run" / "result.json").is_file()
