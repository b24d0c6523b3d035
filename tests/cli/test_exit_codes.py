"""0 done, 2 the caller's mistake, 1 ours, 130 interrupted; never a traceback unless it is asked for."""

import json
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retoken.cli import main as command_line

Cli = Callable[..., Any]
SMALL = ("--batch-size", "4", "--context-length", "32", "--log-every", "1", "--threads", "1")


@pytest.mark.parametrize("verb", command_line.VERBS)
def test_help_of_every_verb(cli: Cli, verb: str) -> None:
    code, out, err = cli(verb, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: retoken {verb}")
    options = re.findall(r"^[ │]*(?:-\w, )?(--[a-z][\w.-]*)", out, flags=re.MULTILINE)
    assert options, out


def test_help_and_version(cli: Cli) -> None:
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    assert all(re.search(rf"^  {verb} ", out, flags=re.MULTILINE) for verb in command_line.VERBS)
    code, out, err = cli("--version")
    assert (code, err) == (0, "") and re.fullmatch(r"retoken \d+\.\d+\.\d+\n", out)


def _fail(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    from retoken.cli.presets import Presets

    def run(self: Presets) -> int:
        raise error

    monkeypatch.setattr(Presets, "run", run)


def test_a_failure_of_ours_is_one_line_and_a_kept_traceback(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail(monkeypatch, ZeroDivisionError("by\nnothing"))
    monkeypatch.delenv(command_line.TRACEBACK_VARIABLE, raising=False)
    code, _, err = cli("presets")
    found = re.fullmatch(r"retoken presets: ZeroDivisionError: by nothing; traceback in (\S+)\n", err)
    assert code == 1 and found, err
    kept = Path(found.group(1))
    assert "Traceback (most recent call last)" in kept.read_text()
    kept.unlink()


def test_a_traceback_can_be_asked_for(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, ZeroDivisionError("by nothing"))
    monkeypatch.setenv(command_line.TRACEBACK_VARIABLE, "1")
    code, _, err = cli("presets")
    assert code == 1 and "Traceback (most recent call last)" in err
    assert err.splitlines()[-1] == "retoken presets: ZeroDivisionError: by nothing; traceback above"


def test_an_interruption_is_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail(monkeypatch, KeyboardInterrupt())
    assert cli("presets") == (130, "", "retoken presets: interrupted\n")


def test_a_reader_that_leaves_is_no_error_to_speak_of() -> None:
    command = f"{sys.executable} -m retoken presets --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=600)
    assert done.stderr == "" and len(done.stdout) == 10


def test_as_a_process(process: Cli, tmp_path: Path) -> None:
    code, out, err = process("train", "demo", "--data", "nowhere", "--steps", 1)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"retoken train: nowhere does not exist; .*\n", err)
    assert list(tmp_path.iterdir()) == []


def _limited(size: int) -> Callable[[], None]:
    """For a child process: no file may grow beyond `size` bytes, so writing fails in the system call."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("verb", ["prepare", "train"])
def test_a_disk_that_takes_no_more(
    cli: Cli, tmp_path: Path, tiny_corpus: Path, tiny_store: Path, verb: str
) -> None:
    words = {
        "prepare": ["--corpus", tiny_corpus, "--vocab-size", 300, "--workers", 1],
        "train": ["demo", "--data", tiny_store, "--variant", "mort", "--steps", 2, *SMALL],
    }[verb]
    command = [sys.executable, "-m", "retoken", verb, *map(str, words), "--out", str(tmp_path / "out")]
    limits = {"prepare": 8 << 10, "train": 256 << 10}
    limited = _limited(limits[verb])
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, preexec_fn=limited)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"retoken {verb}: ") and "Traceback" not in done.stderr, done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".part", ".partial", ".tmp")]
    assert not list(tmp_path.rglob("model.safetensors")) and not list(tmp_path.rglob("manifest.json"))
    # With room again, the very same command goes on to the end.
    assert cli(*command[3:]).code == 0


def test_an_interrupted_run_keeps_a_checkpoint_and_goes_on(
    cli: Cli, tmp_path: Path, tiny_store: Path
) -> None:
    run, steps = tmp_path / "run", 200
    words = ["train", "demo", "--data", tiny_store, "--out", run, "--steps", steps, *SMALL]
    command = [sys.executable, "-m", "retoken", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    _wait_for_line(run / "metrics.jsonl", '"kind": "train"', process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("retoken train: interrupted"), err
    assert "Traceback" not in err and not (run / "result.json").exists()
    (kept,) = (run / "checkpoints").iterdir()
    stopped = int(kept.name.removeprefix("step-"))
    assert 0 < stopped < steps

    assert cli(*words).code == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, steps + 1))


def _wait_for_line(path: Path, text: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 600
    while not (path.exists() and text in path.read_text()):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)
