"""Running verbs as a user does, in this process where a second one would only be slower."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from retoken.cli.main import main


class Outcome(NamedTuple):
    """What a user sees of one command."""

    code: int
    out: str
    err: str


Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    """`retoken` with these words, in this process; native writes to the terminal are seen too."""

    def run(*words: object) -> Outcome:
        capfd.readouterr()
        code = main([str(word) for word in words])
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return run


@pytest.fixture
def process(tmp_path: Path) -> Cli:
    """`python -m retoken` with these words, as a process of its own in an empty folder."""

    def run(*words: object, **environment: str) -> Outcome:
        command = [sys.executable, "-m", "retoken", *map(str, words)]
        done = subprocess.run(
            command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True, timeout=300
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run
