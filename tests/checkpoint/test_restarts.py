"""Jobs under torchrun whose processes are killed restart by themselves and end as if nothing had been."""

import subprocess
import sys
from pathlib import Path

KILLS = Path(__file__).with_name("kills.py")


def test_three_kills_lose_nothing(tiny_store: Path, tmp_path: Path) -> None:
    """The short form of the study: one kill while training or starting, one in a save, one more."""
    words = ["--data", tiny_store, "--work", tmp_path, "--kills", 3, "--steps", 120, "--every", 5]
    command = [sys.executable, KILLS, *words, "--longest", 15, "--seed", 3]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "3 kills over" in done.stdout and "none lost" in done.stdout
    assert "1 while saving" in done.stdout or "2 while saving" in done.stdout
    errors = "".join(path.read_text() for path in tmp_path.glob("job*.err"))
    assert "another process is training there" not in errors, "a lock outlived its process"
    assert "Traceback" not in errors
