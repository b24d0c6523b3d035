"""Which rank of an embedding-parallel group owns which rows (App. B)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from retoken.errors import ConfigError

LayoutName = Literal["V", "E", "VxE"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A grid of owners: rank v * modulator_shards + e owns (x, i) if x falls to v, i to e.

    Token x falls to vocabulary shard x % vocab_shards: tokenizers' ids are roughly in order of frequency, so
    that ranges of ids would load their owners very unevenly. Modulators are divided into ranges.
    """

    vocab_size: int
    """V, tokens that have rows."""
    per_token: int
    """E, rows of a token in one layer."""
    vocab_shards: int
    """S_V."""
    modulator_shards: int
    """S_E."""

    @classmethod
    def make(cls, name: LayoutName, ranks: int, vocab_size: int, per_token: int) -> Layout:
        """The layout of this name over `ranks`; VxE takes the grid nearest to a square.

        Raises:
            ConfigError: Not a layout's name, or modulators are to be divided and there is only one.
        """
        if name not in get_args(LayoutName):
            raise ConfigError(f"layout is {name!r}; accepted: {', '.join(get_args(LayoutName))}")
        if name != "V" and per_token == 1:
            raise ConfigError(f"layout is {name!r} with one row a token; accepted here: V")
        if name == "VxE":
            fits = [n for n in range(1, per_token + 1) if ranks % n == 0 and n * n <= ranks]
            parts = fits[-1]
        else:
            parts = ranks if name == "E" else 1
        return cls(
            vocab_size=vocab_size, per_token=per_token, vocab_shards=ranks // parts, modulator_shards=parts
        )

    @property
    def ranks(self) -> int:
        """Owners in the grid."""
        return self.vocab_shards * self.modulator_shards

    def place(self, rank: int) -> tuple[int, int]:
        """(v, e) of a rank."""
        return divmod(rank, self.modulator_shards)

    def modulators(self, e: int) -> range:
        """Modulators of shard e; the first shards have one more where they don't divide evenly."""
        each, more = divmod(self.per_token, self.modulator_shards)
        start = e * each + min(e, more)
        return range(start, start + each + (e < more))

    def tokens(self, v: int) -> int:
        """Tokens of vocabulary shard v."""
        return (self.vocab_size - v + self.vocab_shards - 1) // self.vocab_shards

    def local_shape(self, rank: int, full: torch.Size) -> tuple[int, ...]:
        """Shape of a rank's part of a tensor of shape [V, ...], or [V, E, ...] where modulators divide."""
        v, e = self.place(rank)
        shape = (self.tokens(v), *full[1:])
        if self.modulator_shards > 1 and len(full) > 1:
            return (shape[0], len(self.modulators(e)), *full[2:])
        return shape

    def take(self, full: Tensor, rank: int) -> Tensor:
        """A rank's part of [V, D], [V, E, D] or [V]: memory of its own."""
        v, e = self.place(rank)
        part = full[v :: self.vocab_shards]
        if self.modulator_shards > 1 and full.dim() > 1:
            own = self.modulators(e)
            part = part[:, own.start : own.stop]
        return part.clone(memory_format=torch.contiguous_format)

    def put(self, full: Tensor, rank: int, part: Tensor) -> None:
        """Write a rank's part into the whole: the inverse of `take`."""
        v, e = self.place(rank)
        target = full[v :: self.vocab_shards]
        if self.modulator_shards > 1 and full.dim() > 1:
            own = self.modulators(e)
            target = target[:, own.start : own.stop]
        target.copy_(part)
