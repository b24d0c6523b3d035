"""Studies of runs that take a second: one budget, two sizes of a 32-wide model, some steps each."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from retoken.study.cell import Cell
from retoken.study.config import StudyConfig
from retoken.study.grid import Data
from retoken.study.table import Row

DATA = Data(fingerprint="f" * 64, vocab_size=4096, train_tokens=7_000_000, val_tokens=200_000)
TINY = ["--budgets", "1e9", "--sizes", "25000", "38000", "--batch-size", "4"]
TINY += [
    "--context-length",
    "32",
    "--eval-tokens",
    "512",
    "--optimum-seeds",
    "0",
    "--etas",
    "3",
    "--rhos",
    "1",
]


@pytest.fixture
def data() -> Data:
    """A store of 7M tokens with a vocabulary of 4096."""
    return DATA


@pytest.fixture
def study() -> Callable[..., StudyConfig]:
    """A study of three budgets; every option can be overridden."""

    def make(**options: Any) -> StudyConfig:
        return StudyConfig(**{"budgets": (6e11, 1.9e12, 6e12), **options})

    return make


@pytest.fixture
def finished() -> Callable[..., Row]:
    """The row of a cell that has finished with a loss, at a speed."""

    def make(cell: Cell, loss: float, speed: float = 1000.0) -> Row:
        own = {f.name: getattr(cell, f.name) for f in fields(Row) if hasattr(cell, f.name)}
        return Row(**own, loss=loss, seconds=cell.tokens / speed, tokens_per_second=speed)

    return make


@pytest.fixture
def tiny(tiny_store: Path) -> Callable[..., list[str]]:
    """The words of `scaling plan` or `run` of a tiny study in a folder."""

    def words(verb: str, out: Path, *more: str) -> list[str]:
        given = ["scaling", verb, "--data", str(tiny_store), "--out", str(out), "--jobs", "1"]
        return [*given, *(("--cost", "keep", *TINY) if verb == "plan" else ()), *more]

    return words
