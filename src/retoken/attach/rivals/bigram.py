"""A hashed bigram table: one row for the last two tokens, added to the residual stream before every layer.

After modded-nanogpt (github.com/KellerJordan/modded-nanogpt, MIT): rows start at zero, layer l adds lambda_l
times the row, lambda_l is learned and starts small. Theirs has rows for five vocabularies; here `size` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from retoken.attach.families import Anatomy
from retoken.attach.rivals.base import Maker, NgramConfig, Rival, RivalHook, enter_with, entered
from retoken.attach.sites import Hook, LayerSite
from retoken.nn import TokenTable


@dataclass(frozen=True, kw_only=True)
class BigramConfig(NgramConfig):
    """h + lambda_l * E[hash(x_{t-1}, x_t)] before each layer; one table of size * L * V rows."""

    type: ClassVar[str] = "bigram"
    orders: ClassVar[tuple[int, ...]] = (2,)

    init_scale: float = 0.05
    """Start value of every lambda."""
    init_std: float = 0.0
    """Standard deviation of the rows at the start."""

    def table_layers(self, num_layers: int) -> tuple[int, ...]:
        """The first; all layers read its table."""
        return (0,)

    def other_params(self, hidden_size: int, num_layers: int) -> int:
        """A lambda a layer."""
        return num_layers

    def flops_per_token(self, hidden_size: int, num_layers: int) -> float:
        """2d a layer: scale and add."""
        return 2.0 * hidden_size * num_layers

    def build(self, anatomy: Anatomy, layer: int, make: Maker) -> Bigram:
        """The only module, which the first layer carries."""
        return Bigram(self.make_table(anatomy, make), self.init_scale, len(anatomy.layers), make)

    def hooks(self, anatomy: Anatomy, sites: list[LayerSite]) -> list[Hook]:
        """Before each layer."""
        return [
            Hook(layer, AddBefore(site, sites[0]), True)
            for layer, site in zip(anatomy.layers, sites, strict=True)
        ]


class Bigram(Rival):
    """Table [rows, D], scale [L]: the lambdas."""

    def __init__(self, table: TokenTable, start: float, depth: int, make: Maker) -> None:
        super().__init__(table)
        self.start = start
        self.scale = make.parameter(depth)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Every lambda at its start value."""
        nn.init.constant_(self.scale, self.start)

    def forward(self, hidden: Tensor, rows: Tensor, layer: int) -> Tensor:
        """Hidden states [B, S, D] with rows [B, S, D] added, as before that layer."""
        return hidden + self.scale[layer].to(hidden.dtype) * rows


class AddBefore(RivalHook):
    """Hook before a decoder layer."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, context = entered(args, kwargs)
        added = self.rival(hidden, self.rows(context, hidden), self.site.layer)
        return enter_with(added, args, kwargs)
