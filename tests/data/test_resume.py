"""Interrupted anywhere and started again, a preparation ends in the same bytes and shows no half shard."""

import errno
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retoken.data import files
from retoken.data.manifest import Manifest
from retoken.data.progress import Reporter
from retoken.errors import DataError

SMALL = {"shard_bytes": 20_000}


class Interrupting(Reporter):
    """Raises at the n-th piece of news of a stage."""

    def __init__(self, stage: str, after: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.stage, self.left, self.error = stage, after, error

    def update(self, stage: str, done: int, total: int | None) -> None:
        self.left -= stage == self.stage
        if self.left < 0:
            raise self.error

    def note(self, text: str) -> None:
        pass


@pytest.mark.parametrize("stage", ["train BPE", "tokenize"])
@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_bytes_after_an_interruption(make, contents, tmp_path, stage, after, workers):
    make("whole", **SMALL)
    with pytest.raises(KeyboardInterrupt):
        make("out", Interrupting(stage, after), workers=workers, **SMALL)
    with pytest.raises(DataError, match="unfinished preparation; run the same"):
        Manifest.load(tmp_path / "out")
    make("out", **SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_completed_pieces_are_kept(make, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make("out", Interrupting("tokenize", 3), **SMALL)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.bin")}
    assert len(kept) >= 3
    make("out", **SMALL)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_damage_between_two_runs_is_done_again(make, contents, tmp_path):
    make("whole", **SMALL)
    with pytest.raises(KeyboardInterrupt):
        make("out", Interrupting("tokenize", 4), **SMALL)
    shards = sorted((tmp_path / "out").glob("train-*.bin"))
    shards[1].write_bytes(shards[1].read_bytes()[:-10])
    (tmp_path / "out" / "pieces" / "00002.json").write_text("{")
    make("out", **SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_cleaned_corpus_resumes_with_what_it_has_seen(make, contents, jsonl, tmp_path):
    jsonl.write_text(
        jsonl.read_text() * 2
    )  # every paragraph twice: without its memory a resumed run keeps both
    make("whole", clean=True, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        make("out", Interrupting("tokenize", 3), clean=True, **SMALL)
    make("out", clean=True, **SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_full_disk_keeps_what_is_complete(make, contents, tmp_path, monkeypatch):
    make("whole", **SMALL)
    real, left = os.fsync, [12]

    def full(descriptor: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(DataError) as caught:
        make("out", **SMALL)
    assert str(tmp_path / "out") in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob("*.part"))
    assert list((tmp_path / "out").glob("train-*.bin"))
    make("out", **SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_a_stopped_process_leaves_no_child_and_is_continued(make, contents, jsonl, tmp_path, sent, code):
    jsonl.write_text(jsonl.read_text() * 60)  # enough behind piece 2 to be interrupted in
    options = {"shard_bytes": 100_000, "workers": 2}
    make("whole", **options)
    corpus = ["--corpus", str(jsonl), "--out", str(tmp_path / "out"), "--shard-bytes", "100000"]
    command = [sys.executable, "-m", "retoken", "prepare", *corpus, "--vocab-size", "400", "--workers", "2"]
    command += ["--val-fraction", "0.2"]
    # A shell starts what it puts in the background with SIGINT ignored, and children would inherit that.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, preexec_fn=heed)
    try:
        _wait(lambda: (tmp_path / "out" / "pieces" / "00002.json").is_file() or process.poll() is not None)
    finally:
        process.send_signal(sent)
        told = process.communicate()[1].decode().splitlines()
    assert process.returncode == code
    assert sent == signal.SIGKILL or told == ["retoken prepare: interrupted"]
    assert not (tmp_path / "out" / "manifest.json").exists(), "killed too late to show anything"
    _wait(lambda: not _session(process.pid))
    make("out", **options)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def _wait(done, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def _session(leader: int) -> list[str]:
    """Command lines of the processes in a session, Linux only."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(stat.parent.name)
    return found
