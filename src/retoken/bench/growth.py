"""What a training step costs as tables grow: the same batch and backbone, more rows that nobody reads."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from retoken.errors import ConfigError
from retoken.train import setup
from retoken.train.bench import BareLoop
from retoken.train.config import TrainConfig
from retoken.train.tables import TableOptions
from retoken.train.timing import Spread, interleaved, ratios
from retoken.train.world import open_world


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """A training step with tables of one size."""

    variant: str
    """"retoken" or "mort"."""
    optimizer: str
    """How the tables are trained, as `TableOptions.optimizer` says it."""
    vocab_size: int
    """Tokens the tables have rows for."""
    table_params: int
    """Numbers in the tables."""
    step_seconds: Spread
    """Of a step: forward, backward, clipping, optimizer."""
    over_smallest: Spread
    """Over the step with the smallest tables of the same optimizer, in the same repeat."""


def measure_growth(
    config: TrainConfig,
    vocab_sizes: Sequence[int],
    *,
    optimizers: Sequence[str] = ("row_wise", "adamw"),
    steps: int = 4,
    repeats: int = 8,
) -> list[Growth]:
    """Time training steps whose tables have rows for more and more tokens, in turns.

    Backbone, batch and rows read are the same: the backbone's own embedding and head do not grow.

    Args:
        config: The run; a variant with tables.
        vocab_sizes: From the backbone's own.
        optimizers: Of the tables.
        steps: Of one turn.
        repeats: Turns.

    Raises:
        ConfigError: A size below the backbone's vocabulary.
    """
    with open_world(config.device, config.threads) as world:
        store = setup.open_store(config)
        least = store.manifest.vocab_size
        if min(vocab_sizes) < least:
            raise ConfigError(f"--vocab-sizes has {min(vocab_sizes)}; accepted: from the backbone's {least}")
        loops = {
            (optimizer, size): BareLoop(_with(config, optimizer), store, world, table_vocab=size)
            for optimizer in optimizers
            for size in sorted(vocab_sizes)
        }
        cases = {key: functools.partial(loop.train, steps, clip=True) for key, loop in loops.items()}
        seconds = interleaved(cases, repeats=repeats, warmup=2)
    smallest = min(vocab_sizes)
    return [
        Growth(
            variant=config.variant,
            optimizer=optimizer,
            vocab_size=size,
            table_params=_table_params(loop, size),
            step_seconds=Spread.of([found / steps for found in seconds[optimizer, size]]),
            over_smallest=ratios(seconds[optimizer, size], seconds[optimizer, smallest]),
        )
        for (optimizer, size), loop in loops.items()
    ]


def _with(config: TrainConfig, optimizer: str) -> TrainConfig:
    tables: Any = TableOptions(optimizer=optimizer)  # pyright: ignore
    return dataclasses.replace(config, tables=tables, compile="off")


def _table_params(loop: BareLoop, vocab_size: int) -> int:
    stack: Any = loop.model.retoken
    return sum(module.table.weight[:1].numel() * vocab_size for module in stack.layers.values())
