"""What every room's tests share: one thread, quiet libraries, a token store, and runs that take a second."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from retoken.cli.main import main
from retoken.data.config import PrepareConfig
from retoken.data.prepare import prepare

ROOT = Path(__file__).parents[1]
WORDS = "the a cat dog house runs sees under over tree blue red and or but when then small big king".split()


@pytest.fixture(scope="session", autouse=True)
def _small_machine() -> None:
    """Tiny models gain nothing from threads, and test processes run side by side."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()


@pytest.fixture(scope="session")
def python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A finished process of another Python, which imports this checkout's package: words, environment."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
        own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTEST_XDIST_WORKER": ""} | environment
        command = [sys.executable, *words]
        return subprocess.run(command, cwd=ROOT, env=os.environ | own, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A jsonl file of 120 documents of random sentences."""
    chance = random.Random(0)
    path = tmp_path_factory.mktemp("corpus") / "words.jsonl"
    lines = [json.dumps({"text": " ".join(chance.choices(WORDS, k=150)) + "."}) for _ in range(120)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="session")
def tiny_store(tiny_corpus: Path) -> Path:
    """That corpus as a token store with a vocabulary of 300."""
    out = tiny_corpus.parent / "store"
    prepare(PrepareConfig(corpus=str(tiny_corpus), out=out, vocab_size=300, val_fraction=0.1, workers=1))
    return out


@pytest.fixture(scope="session")
def tiny_run(tiny_store: Path) -> Callable[[str], Path]:
    """The folder of a finished run of three steps of a variant, trained once a session."""

    def run(variant: str = "mort") -> Path:
        out = tiny_store.parent / f"run-{variant}"
        if not out.exists():
            words = ["train", "demo", "--variant", variant, "--data", str(tiny_store), "--out", str(out)]
            assert main([*words, "--steps", "3", "--batch-size", "4", "--context-length", "32"]) == 0
        return out

    return run
