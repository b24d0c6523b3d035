"""What is planned for: tables, the batch, and how ranks share the tables. Numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from retoken.config import ModulatorConfig, MoRTConfig, require_modulator
from retoken.errors import ConfigError

Layout = Literal["V", "E", "VxE"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def require(ok: bool, option: str, found: object, accepted: str) -> None:
    """The one-line refusal of an option.

    Raises:
        ConfigError: not `ok`.
    """
    if not ok:
        raise ConfigError(f"{option} is {found}; accepted: {accepted}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """The token-indexed rows of a model."""

    vocab_size: int
    """V: token ids, or hashes of them, that own rows."""
    width: int
    """D."""
    layers: int
    """Layers that carry a table."""
    modulators: int = 1
    """E: rows a token owns in a layer."""
    top_k: int = 1
    """K: rows mixed per token and layer."""
    row_bytes: int = 4
    """Bytes of an element of a row: 4 float32, 2 bfloat16."""
    gradient_bytes: int = 4
    """Bytes of an element of its gradient: float32 also for narrower rows."""
    mixes: bool = False
    """MoRT: a router chooses rows, so they can be fetched behind it too."""

    @classmethod
    def of(
        cls,
        modulator: ModulatorConfig,
        *,
        vocab_size: int,
        hidden_size: int,
        num_layers: int,
        row_bytes: int = 4,
    ) -> Tables:
        """The tables that `modulator` attaches to a backbone of that size.

        Raises:
            ConfigError: its layers are not in the backbone, or it is no modulator of the paper's.
        """
        require_modulator(modulator, "dividing tables")
        routed = isinstance(modulator, MoRTConfig)
        return cls(
            vocab_size=modulator.table_rows(vocab_size),
            width=hidden_size,
            layers=len(modulator.table_layers(num_layers)),
            modulators=modulator.rows_per_token,
            top_k=modulator.top_k if routed else 1,
            row_bytes=row_bytes,
            mixes=routed,
        )

    @property
    def params(self) -> int:
        """N_n."""
        return self.vocab_size * self.params_per_token

    @property
    def params_per_token(self) -> int:
        """Elements of all rows of one token, over all layers."""
        return self.layers * self.modulators * self.width


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One optimizer step over all ranks."""

    sequences: int
    """Sequences per step, over all ranks."""
    context_length: int
    """Tokens per sequence."""
    ranks: int = 1
    """Data-parallel processes; each takes the same share of the sequences."""
    micro_sequences: int = 0
    """Sequences per forward pass of one rank; 0: its whole share."""

    def __post_init__(self) -> None:
        require(self.ranks >= 1, "ranks", self.ranks, "an integer from 1")
        require(self.context_length >= 1, "context_length", self.context_length, "an integer from 1")
        fits = self.sequences >= 1 and self.sequences % self.ranks == 0
        require(
            fits, "batch_size", f"{self.sequences} with {self.ranks} ranks", f"a multiple of {self.ranks}"
        )
        micro = self.micro_sequences
        require(
            0 <= micro <= self.share, "micro_batch_size", micro, f"up to {self.share}, or 0 for all of it"
        )

    @property
    def share(self) -> int:
        """Sequences of one rank."""
        return self.sequences // self.ranks

    @property
    def micro_batches(self) -> int:
        """Forward passes of one rank per step."""
        return -(-self.share // (self.micro_sequences or self.share))

    @property
    def tokens(self) -> int:
        """T: tokens of one forward pass of one rank, the largest."""
        return (self.micro_sequences or self.share) * self.context_length

    @property
    def rank_tokens(self) -> int:
        """Tokens of one rank per step."""
        return self.share * self.context_length

    @property
    def step_tokens(self) -> int:
        """Tokens of the step over all ranks."""
        return self.sequences * self.context_length


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Owners of a table: S_V x S_E of them; owner (v, e) is rank v * S_E + e of an emp group.

    A token x belongs to vocabulary shard x % S_V, which spreads frequent ids. Modulators are split into S_E
    consecutive parts as even as they can be, larger ones first: 5 over 4 is 2, 1, 1, 1.
    """

    vocab_shards: int = 1
    """S_V."""
    modulator_shards: int = 1
    """S_E."""

    @property
    def size(self) -> int:
        """Ranks of an emp group: every one owns one part."""
        return self.vocab_shards * self.modulator_shards

    @property
    def layout(self) -> Layout:
        """Its name; one owner of everything is "V"."""
        if self.modulator_shards == 1:
            return "V"
        return "E" if self.vocab_shards == 1 else "VxE"

    def tokens_of(self, vocab_size: int) -> np.ndarray:
        """[S_V]: token ids that each vocabulary shard owns."""
        return (vocab_size - np.arange(self.vocab_shards) - 1) // self.vocab_shards + 1

    def modulators_of(self, modulators: int) -> np.ndarray:
        """[S_E]: modulators that each part holds."""
        whole, more = divmod(modulators, self.modulator_shards)
        return whole + (np.arange(self.modulator_shards) < more).astype(np.int64)

    def per_owner(self, per_vocab_shard: np.ndarray) -> np.ndarray:
        """[..., S_V] -> [..., S_V * S_E]: each owner has its vocabulary shard's number."""
        return np.repeat(per_vocab_shard, self.modulator_shards, axis=-1)

    def modulators_per_owner(self, modulators: int) -> np.ndarray:
        """[S_V * S_E]: E_e of each owner."""
        return np.tile(self.modulators_of(modulators), self.vocab_shards)

    def __str__(self) -> str:
        return f"{self.layout} ({self.vocab_shards} x {self.modulator_shards})"


def grids(tables: Tables, emp: int, layout: str = "auto") -> tuple[Grid, ...]:
    """Every grid of `emp` owners in a layout, or in all of them, in which each owner has something.

    Raises:
        ConfigError: an unknown layout, or one in which an owner would have nothing.
    """
    accepted = ("auto", *LAYOUTS)
    require(layout in accepted, "tables.layout", repr(layout), ", ".join(accepted))
    require(emp >= 1, "tables.ranks", emp, "an integer from 1")
    factors = [Grid(vocab_shards=emp // e, modulator_shards=e) for e in range(1, emp + 1) if emp % e == 0]
    wanted = [grid for grid in factors if layout == "auto" or grid.layout == layout]
    found = tuple(grid for grid in wanted if _fits(tables, grid))
    if not found:
        raise ConfigError(
            f"tables.layout is {layout} over {emp} ranks, some of which would own nothing; accepted: up to "
            f"{tables.vocab_size} vocabulary shards (token ids) times {tables.modulators} modulator shards"
            + (", both above 1 for VxE" if layout == "VxE" else "")
        )
    return found


def _fits(tables: Tables, grid: Grid) -> bool:
    return grid.vocab_shards <= tables.vocab_size and grid.modulator_shards <= tables.modulators
