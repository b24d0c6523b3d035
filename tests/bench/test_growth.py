"""The growth bench times the same batch with tables of other sizes."""

import random

import pytest

from retoken.bench.growth import measure_growth
from retoken.data.config import PrepareConfig
from retoken.data.prepare import prepare
from retoken.errors import ConfigError
from retoken.train import TrainConfig


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("growth")
    (root / "text").mkdir()
    chance = random.Random(0)
    for number in range(60):
        words = [
            chance.choice("the a cat dog house runs sees under over tree blue red".split())
            for _ in range(300)
        ]
        (root / "text" / f"{number}.txt").write_text(" ".join(words) + ".")
    prepare(
        PrepareConfig(
            corpus=str(root / "text"), out=root / "store", vocab_size=300, val_fraction=0.2, workers=1
        )
    )
    return TrainConfig(
        **{"out": root / "run", "data": root / "store", "preset": "cpu-xs", "variant": "mort"},
        **{"steps": 10, "batch_size": 2, "context_length": 16, "threads": 1},
    )


def test_every_size_by_every_optimizer(config):
    sizes = (512, 2048)
    found = measure_growth(config, sizes, steps=1, repeats=2)
    assert [(g.optimizer, g.vocab_size) for g in found] == [
        (optimizer, size) for optimizer in ("row_wise", "adamw") for size in sizes
    ]
    assert found[1].table_params == 4 * found[0].table_params
    assert found[0].over_smallest.median == 1 and found[1].step_seconds.median > 0


def test_tables_smaller_than_the_vocabulary_are_refused(config):
    with pytest.raises(ConfigError, match=r"--vocab-sizes has 100; accepted: from the backbone's"):
        measure_growth(config, (100, 512))
