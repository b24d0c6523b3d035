"""Jobs under torchrun whose processes are killed restart by themselves and end as if nothing had been."""

import importlib.util
import subprocess
import sys
from pathlib import Path

KILLS, HOSTS = (Path(__file__).with_name(name) for name in ("kills.py", "hosts.py"))


def test_three_kills_lose_nothing(tiny_store: Path, tmp_path: Path) -> None:
    """The short form of the study: one kill at any moment, one around a save, one more."""
    words = ["--data", tiny_store, "--work", tmp_path, "--kills", 3, "--steps", 80, "--every", 5]
    command = [sys.executable, KILLS, *words, "--longest", 6, "--seed", 3]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "3 kills over" in done.stdout and "none lost" in done.stdout
    errors = "".join(path.read_text() for path in tmp_path.glob("job*.err"))
    assert "another process is training there" not in errors, "a lock outlived its process"
    assert "Traceback" not in errors


def test_a_host_that_is_cut_off_is_told_in_time_and_comes_back(tiny_store: Path, tmp_path: Path) -> None:
    """Hosts are network namespaces where this user may make them, otherwise two agents on this machine."""
    spec = importlib.util.spec_from_file_location("hosts", HOSTS)
    assert spec and spec.loader
    hosts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hosts)
    kind = "namespaces" if hosts.namespaces_work() else "agents"
    words = ["--data", tiny_store, "--work", tmp_path, "--hosts", kind, "--steps", 60]
    command = [sys.executable, HOSTS, *words]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "with and without the cut, weights bit-equal" in done.stdout
