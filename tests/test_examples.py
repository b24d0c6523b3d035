"""Every example runs as it is printed in the documentation, and says that the loss falls."""

import os
import re
import subprocess
import sys
from pathlib import Path

from retoken.eval import open_checkpoint
from retoken.testing import tiny_model

EXAMPLES = Path(__file__).parent.parent / "examples"


def _run(folder: Path, *command: str) -> str:
    # The `retoken` command of this very environment, also where it is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _losses(output: str) -> list[float]:
    return [float(found) for found in re.findall(r"loss\s+([\d.]+)", output)]


def test_every_example_is_tested_here() -> None:
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_file()) == [
        "01_attach.py",
        "02_pretrained.py",
        "03_train_cli.sh",
    ]


def test_01_attach(tmp_path: Path) -> None:
    output = _run(tmp_path, sys.executable, str(EXAMPLES / "01_attach.py"), str(tmp_path / "model"))
    losses = _losses(output)
    assert losses[-1] < losses[0] / 2
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert "Peter Piper" in output


def test_02_pretrained(tmp_path: Path, tiny_store: Path) -> None:
    model = tiny_model("llama", vocab_size=300, max_position_embeddings=512)
    model.save_pretrained(tmp_path / "pretrained")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "pretrained" / name).write_bytes((tiny_store / "tokenizer" / name).read_bytes())
    (tmp_path / "text.txt").write_text("the cat sees a house and the dog runs under trees. " * 20)
    script = str(EXAMPLES / "02_pretrained.py")
    losses = _losses(_run(tmp_path, sys.executable, script, "pretrained", "text.txt", "with_tables"))
    assert len(losses) == 10 and losses[-1] < losses[0] - 0.1
    assert open_checkpoint(str(tmp_path / "with_tables")).tokenizer is not None


def test_03_train_cli(tmp_path: Path) -> None:
    output = _run(tmp_path, "bash", str(EXAMPLES / "03_train_cli.sh"), "out")
    assert "bits per byte" in output
    assert (tmp_path / "out" / "run" / "result.json").is_file()
