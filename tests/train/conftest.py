"""A token store of some thousand tokens with structure, and runs of a 64-wide model that take a second."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging

from retoken.data.config import PrepareConfig
from retoken.data.prepare import prepare
from retoken.train import TrainConfig

WORDS = (
    "the a cat dog house runs sees under over tree blue red and or but when then small big king queen river"
)


def write_corpus(folder: Path, documents: int = 60) -> Path:
    """Random sentences in which every second word follows from the one before."""
    folder.mkdir(parents=True, exist_ok=True)
    chance, words = random.Random(0), WORDS.split()
    for number in range(documents):
        firsts = [chance.randrange(len(words)) for _ in range(200)]
        pairs = [f"{words[first]} {words[(first * 5 + 3) % len(words)]}" for first in firsts]
        (folder / f"{number}.txt").write_text(" ".join(pairs) + ".")
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared token store: vocabulary 300, about 40,000 tokens."""
    logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("data")
    corpus = write_corpus(root / "corpus")
    out = root / "store"
    prepare(PrepareConfig(corpus=str(corpus), out=out, vocab_size=300, val_fraction=0.1, workers=1))
    return out


@pytest.fixture
def make(store: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """TrainConfig of a run of 12 steps; every option can be overridden."""

    def build(**options: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "out": tmp_path / "run",
            "data": store,
            "steps": 12,
            "batch_size": 4,
            "context_length": 16,
            "lr": 3e-3,
            "log_every": 5,
            "eval_tokens": 400,
            "threads": 1,
            "keep": 3,
        }
        values |= {} if "model" in options else {"preset": "cpu-xs"}
        return TrainConfig(**(values | options))

    return build


@pytest.fixture
def gpt2_with_dropout(store: Path, tmp_path: Path) -> Path:
    """A saved GPT-2 that drops out a tenth of everything, with the store's vocabulary."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=300, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    folder = tmp_path / "gpt2"
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder
