"""Everything that `retoken inspect` finds, as plain numbers: what the page draws and `--json` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from retoken.inspect.routing import LayerLoad
from retoken.inspect.tables import Scale, Strength

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Band:
    """Tokens of a range of frequency ranks."""

    label: str
    tokens: int
    share: float | None
    """Of the training split; None where no split is known."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Rows that training has touched."""

    source: str
    """How that is known."""
    never_tokens: int
    """Tokens none of whose rows had a gradient."""
    never_rows: float
    """Share of all rows, of every layer and modulator, that had none."""


@dataclass(frozen=True, kw_only=True)
class Near:
    """The tokens nearest to one."""

    token: str
    near: tuple[tuple[str, float], ...]
    """(text, cosine), the nearest first."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A token's rows, all layers; costs are increases of the loss in nats a position where it is read."""

    token: str
    count: int
    """Positions looked at."""
    first: float
    """Estimated to first order."""
    path: float
    """Estimated along the path."""
    real: float | None = None
    """Measured by zeroing them; None where they were not."""


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """Held-out loss against the share of tokens that keep their rows, and what may go."""

    shares: tuple[float, ...]
    increases: dict[str, tuple[float, ...]]
    """{order: increase in nats per token at each share}."""
    allowed: tuple[tuple[float, int, float], ...]
    """(increase allowed, tokens whose rows may go, increase measured), in the order of importance."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found on held-out text. Losses and increases are nats per token on the measured half."""

    store: str
    looked_tokens: int
    """Predicted where rows were estimated and choices counted."""
    measured_tokens: int
    """Predicted where losses were measured: other windows."""
    loss: float
    without_all: float
    """Increase with every scale at zero: the backbone alone, which was trained with its tables."""
    without_layer: dict[int, float]
    """Increase with one layer's scale at zero."""
    without_band: tuple[float, ...]
    """Increase with the rows of a band's tokens at zero."""
    hidden_std: dict[str, dict[int, float]]
    """{setting: {depth: std of the residual stream}}; depth 0 lies before the first block."""
    loads: dict[int, LayerLoad]
    """By layer; empty for ReToken."""
    first_total: float
    """Sum of the first-order estimates of all rows, nats per token."""
    path_total: float
    """The same along the path: about `without_all`, but on the half that was looked at."""
    checked: tuple[Row, ...]
    """Tokens whose rows were really zeroed, the most frequent first."""
    first_rank: float
    """Rank correlation of the first-order estimate with the real cost a position."""
    path_rank: float
    """The same of the estimate along the path."""
    worth_most: tuple[Row, ...]
    """Tokens whose rows are worth most a position, chance taken into account."""
    pruning: Pruning


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a checkpoint's tables learned."""

    checkpoint: str
    modulator: dict[str, Any]
    """Its configuration."""
    depth: int
    """Layers of the backbone."""
    vocab_size: int
    width: int
    scales: dict[int, Scale]
    """By layer."""
    bands: tuple[Band, ...]
    strengths: dict[int, tuple[Strength, ...]]
    """By layer, one a band."""
    training: Training | None
    near: tuple[Near, ...]
    measured: Measured | None
    """None without a token store."""

    @property
    def variant(self) -> str:
        """ "retoken" or "mort"."""
        return self.modulator["type"]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; a number that JSON has no word for is null."""
        return {"format_version": FORMAT_VERSION, **_plain(asdict(self))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and value != value else value
