"""Real text, cut into prompts and what follows them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from retoken.data.tokens import TokenStore
from retoken.errors import ConfigError


class Prompt(NamedTuple):
    """A batch to be read, and the text that goes on: decoding is fed real tokens, not a random model's."""

    ids: Tensor
    """[B, P]"""
    following: Tensor
    """[B, N]"""

    def to(self, device: torch.device) -> Prompt:
        """There."""
        return Prompt(*(part.to(device) for part in self))


def cut(data: Path, *, count: int, batch: int, length: int, following: int, seed: int) -> list[Prompt]:
    """Prompts from anywhere in a store's held-out split.

    Raises:
        ConfigError: it is shorter than one prompt and what follows it.
    """
    split = TokenStore.open(data).split("val")
    span = length + following
    if len(split) < span:
        raise ConfigError(f"--prompt-lengths has {length}; accepted: up to {len(split) - following} here")
    generator = np.random.default_rng(seed)
    starts = generator.integers(0, len(split) - span + 1, (count, batch))
    texts = [np.stack([split.read(int(start), span) for start in row]) for row in starts]
    return [Prompt(*torch.from_numpy(text).split([length, following], dim=1)) for text in texts]


def tokens_of(prompts: list[Prompt]) -> Tensor:
    """The distinct ids that occur, ascending."""
    return torch.cat([part.flatten() for prompt in prompts for part in prompt]).unique()
