"""What a comparison can train, by name: the baseline, the paper's two modulators, and their rivals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from retoken.attach.rivals import (
    BigramConfig,
    EngramConfig,
    OverTokenizedConfig,
    PerLayerConfig,
    ValueConfig,
)
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.errors import ConfigError

Build = Callable[[ReTokenConfig, MoRTConfig, float], ModulatorConfig | None]
"""What a variant attaches, given how ReToken and MoRT are, and the size of rivals' tables over ReToken's."""


def _additive(retoken: ReTokenConfig, mort: MoRTConfig, size: float) -> MoRTConfig:
    """With one row a token the mixture's weight is 1: ReToken's table, added in MoRT's way."""
    return replace(mort, num_modulators=1, top_k=1, balance_coef=0.0)


def _retoken_bigram(retoken: ReTokenConfig, mort: MoRTConfig, size: float) -> ReTokenConfig:
    return replace(retoken, index="bigram", index_size=size)


def _mort_bigram(retoken: ReTokenConfig, mort: MoRTConfig, size: float) -> MoRTConfig:
    """n_e rows a hashed bigram, in as many bytes as the others have."""
    return replace(mort, index="bigram", index_size=size / mort.num_modulators)


def _with_token(size: float, name: str) -> float:
    """Rows of bigrams that are left where every token has a row of its own, which ReToken's size is."""
    if size <= 1:
        raise ConfigError(f"size is {size:g} with {name}; accepted: above 1")
    return size - 1


def _retoken_both(retoken: ReTokenConfig, mort: MoRTConfig, size: float) -> ReTokenConfig:
    return replace(retoken, index="token_bigram", index_size=_with_token(size, "retoken_both"))


def _additive_both(retoken: ReTokenConfig, mort: MoRTConfig, size: float) -> MoRTConfig:
    hashed = _with_token(size, "additive_both")
    return replace(_additive(retoken, mort, size), index="token_bigram", index_size=hashed)


VARIANTS: dict[str, Build] = {
    "baseline": lambda retoken, mort, size: None,
    "retoken": lambda retoken, mort, size: retoken,
    "mort": lambda retoken, mort, size: mort,
    "additive": _additive,
    "retoken_bigram": _retoken_bigram,
    "retoken_both": _retoken_both,
    "additive_both": _additive_both,
    "mort_bigram": _mort_bigram,
    "value": lambda retoken, mort, size: ValueConfig(),
    "per_layer": lambda retoken, mort, size: PerLayerConfig(size=size),
    "bigram": lambda retoken, mort, size: BigramConfig(size=size),
    "over_tokenized": lambda retoken, mort, size: OverTokenizedConfig(size=size),
    "engram": lambda retoken, mort, size: EngramConfig(size=size),
    "wide": lambda retoken, mort, size: None,
}
"""Name -> what it attaches. "wide" is a plain backbone of another width."""
WIDE = "wide"


def attached(name: str, retoken: ReTokenConfig, mort: MoRTConfig, size: float) -> ModulatorConfig | None:
    """What the variant of that name attaches; None: nothing."""
    return VARIANTS[name](retoken, mort, size)
