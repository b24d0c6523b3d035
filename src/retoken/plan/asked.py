"""What ranks ask of owners in one micro-batch: counted from their ids, or expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retoken.errors import ConfigError
from retoken.plan.frequency import Frequencies
from retoken.plan.shape import Grid, Tables

PAIRED = ("routed", "sharded")
"""Options under which pairs of token id and chosen modulator travel."""
Ids = Sequence[np.ndarray]
Chosen = Sequence[Sequence[np.ndarray]]


class Asked(NamedTuple):
    """What ranks ask of owners in one micro-batch; [1, ...] where all ranks are alike."""

    unique: np.ndarray
    """u: [N, S_V]."""
    tokens: np.ndarray
    """t: [N, S_V]."""
    union: np.ndarray
    """U: [P, S_V]."""
    pairs: np.ndarray | None = None
    """q summed over the layers: [N, G]; None where no pairs travel."""


def counted(ids: Ids, tables: Tables, grid: Grid, option: str, chosen: Chosen | None) -> Asked:
    """From each rank's ids, and each rank's and layer's chosen modulators; see `traffic.of_requests`.

    Raises:
        ConfigError: choices are needed and missing, or of another number of layers.
    """
    flat = [np.asarray(each).reshape(-1) for each in ids]
    shards, size = grid.vocab_shards, grid.size
    groups = [np.concatenate(flat[start : start + size]) for start in range(0, len(flat), size)]
    return Asked(
        unique=np.stack([_per_shard(np.unique(each), shards) for each in flat]),
        tokens=np.stack([_per_shard(each, shards) for each in flat]),
        union=np.stack([_per_shard(np.unique(each), shards) for each in groups]),
        pairs=_pairs_of(flat, tables, grid, option, chosen) if option in PAIRED else None,
    )


def expected(frequencies: Frequencies, tokens: int, tables: Tables, grid: Grid, option: str) -> Asked:
    """Of `tokens` tokens on each rank, all alike; see `traffic.expected`."""
    shards = grid.vocab_shards
    return Asked(
        unique=frequencies.unique(tokens, shards)[None],
        tokens=(frequencies.shares(shards) * tokens)[None],
        union=frequencies.unique(tokens * grid.size, shards)[None],
        pairs=_expected_pairs(frequencies, tokens, tables, grid, option) if option in PAIRED else None,
    )


def _per_shard(ids: np.ndarray, shards: int) -> np.ndarray:
    return np.bincount(ids.astype(np.int64) % shards, minlength=shards)


def _pairs_of(ids: Ids, tables: Tables, grid: Grid, option: str, chosen: Chosen | None) -> np.ndarray:
    """q summed over the layers, [N, G]."""
    if chosen is None:
        if tables.mixes:
            raise ConfigError(
                f"exchange {option} needs what the routers chose; accepted: [T, K] per rank and layer"
            )
        chosen = [[np.zeros((len(each), 1), np.int64)] * tables.layers for each in ids]
    ends = np.cumsum(grid.modulators_of(tables.modulators))
    count = np.zeros((len(ids), grid.size), np.int64)
    for rank, (own, layers) in enumerate(zip(ids, chosen, strict=True)):
        if len(layers) != tables.layers:
            raise ConfigError(f"choices of {len(layers)} layers; accepted: of {tables.layers}")
        for choice in layers:
            choice = np.asarray(choice).reshape(-1, np.shape(choice)[-1])
            pair = (own[:, None] * tables.modulators + choice).reshape(-1).astype(np.int64)
            pair = pair if option == "sharded" else np.unique(pair)
            token, modulator = np.divmod(pair, tables.modulators)
            part = np.searchsorted(ends, modulator, side="right")
            owner = token % grid.vocab_shards * grid.modulator_shards + part
            count[rank] += np.bincount(owner, minlength=grid.size)
    return count


def _expected_pairs(
    frequencies: Frequencies, tokens: int, tables: Tables, grid: Grid, option: str
) -> np.ndarray:
    chance = tables.top_k / tables.modulators
    if option == "routed":
        per_modulator = frequencies.unique(tokens, grid.vocab_shards, chance)
    else:
        per_modulator = frequencies.shares(grid.vocab_shards) * tokens * chance
    held = grid.modulators_per_owner(tables.modulators)
    return (tables.layers * grid.per_owner(per_modulator) * held)[None]
