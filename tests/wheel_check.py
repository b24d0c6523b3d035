"""Build the wheel, install it into a fresh venv outside the checkout, and use it there as a stranger would.

python tests/wheel_check.py --constraint requirements/lock.txt
"""

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ATTACH = """
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import retoken

assert "site-packages" in retoken.__file__, retoken.__file__
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                     num_attention_heads=4, num_key_value_heads=2)
model = AutoModelForCausalLM.from_config(config).eval()
ids = torch.arange(3, 13).reshape(2, 5)
plain = model(input_ids=ids).logits
retoken.attach(model, retoken.MoRTConfig())
attached = model(input_ids=ids).logits
assert not torch.equal(plain, attached)
model.save_pretrained("model")
loaded = AutoModelForCausalLM.from_pretrained("model").eval()
assert torch.equal(loaded(input_ids=ids).logits, attached)
assert loaded.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (2, 8)
retoken.detach(loaded)
assert torch.equal(loaded(input_ids=ids).logits, plain)
print("attached, saved, loaded, generated, detached with retoken", retoken.__version__)
"""
COMMANDS = (
    ["retoken", "--version"],
    ["retoken", "presets"],
    [
        "retoken",
        "prepare",
        "--corpus",
        "builtin",
        "--max-bytes",
        "200000",
        "--vocab-size",
        "300",
        "--out",
        "data",
    ],
    ["retoken", "compare", "demo", "--data", "data", "--steps", "2", "--seeds", "0", "--out", "study"],
)


def run(command: list[str], cwd: Path, path: Path | None = None) -> None:
    """Run and show; a failure ends the check."""
    print("$", " ".join(command), flush=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PATH"] = os.pathsep.join([str(path), environment["PATH"]])
    subprocess.run(command, cwd=cwd, env=environment, check=True)


def build(folder: Path) -> Path:
    """The wheel, built from the checkout; it must hold what is not Python too."""
    options = ["--wheel", "--no-isolation", "--outdir", str(folder)]
    run([sys.executable, "-m", "build", *options], ROOT)
    (wheel,) = folder.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "retoken/py.typed" in names, names
    assert any(name.startswith("retoken/report/templates/") for name in names), names
    assert not [name for name in names if name.startswith(("tests", "docs"))], names
    return wheel


def main() -> None:
    """Build, install, use."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--constraint", type=Path, required=True, help="pinned versions")
    constraint = str(parser.parse_args().constraint.resolve())
    with tempfile.TemporaryDirectory(prefix="retoken-wheel-") as name:
        folder = Path(name)
        wheel = build(folder / "dist")
        run([sys.executable, "-m", "venv", "venv"], folder)
        scripts = folder / "venv" / "bin"
        pip = [str(scripts / "python"), "-m", "pip", "install", "--quiet", "--constraint", constraint]
        run([*pip, "torch"], folder)
        run([*pip, str(wheel)], folder)
        work = folder / "work"
        work.mkdir()
        for command in COMMANDS:
            run([str(scripts / command[0]), *command[1:]], work, scripts)
        assert (work / "study" / "report.html").is_file()
        (work / "attach.py").write_text(ATTACH)
        run([str(scripts / "python"), "attach.py"], work, scripts)
    print("wheel-check: passed")


if __name__ == "__main__":
    main()
