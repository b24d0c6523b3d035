"""Value embeddings: a token's row is added to what attention passes on of it.

After nanochat (github.com/karpathy/nanochat, MIT): v = v + 2 sigmoid(W x[:32]) * E[x], a gate a head that
starts at 1, and rows that start like the value projection. There every other layer has them: see `layers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from retoken.attach.families import Anatomy
from retoken.attach.rivals.base import Maker, Rival, RivalConfig, RivalHook
from retoken.attach.sites import Hook, LayerSite
from retoken.errors import AttachError, ConfigError
from retoken.nn import TokenTable

GATE_CHANNELS = 32
PROJECTION = "self_attn.v_proj"


@dataclass(frozen=True, kw_only=True)
class ValueConfig(RivalConfig):
    """v + 2 sigmoid(W x[:32]) * E[x], with a few gates for as many stretches of channels."""

    type: ClassVar[str] = "value"

    gates: int = 4
    """Gates a layer, each for as many channels in a row; nanochat has one a head."""

    init_std: float = 0.0
    """Standard deviation of the rows at the start; 0: one over the root of the width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != 1:
            raise ConfigError(f"size is {self.size}; accepted: 1, a row as wide as the model for each token")
        if type(self.gates) is not int or self.gates < 1:
            raise ConfigError(f"gates is {self.gates!r}; accepted: an integer from 1")

    def other_params(self, hidden_size: int, num_layers: int) -> int:
        """Gates, which read 32 channels each."""
        return len(self.table_layers(num_layers)) * self.gates * min(GATE_CHANNELS, hidden_size)

    def flops_per_token(self, hidden_size: int, num_layers: int) -> float:
        """Two for each element of the gates, and 2d to gate and add, a layer."""
        layers = len(self.table_layers(num_layers))
        return 2.0 * (self.other_params(hidden_size, num_layers) + hidden_size * layers)

    def build(self, anatomy: Anatomy, layer: int, make: Maker) -> ValueEmbedding:
        """The module of a layer.

        Raises:
            AttachError: the layer has no value projection of its own, or one of another width.
        """
        found: Any = _projection(anatomy.layers[layer])
        width, given = anatomy.hidden_size, found.weight.shape[0]
        if given != width:
            raise AttachError(
                f"{PROJECTION} gives {given} numbers, the model is {width} wide; accepted: as many key and "
                "value heads as query heads"
            )
        if width % self.gates:
            raise ConfigError(f"gates is {self.gates}; accepted: a divisor of the model's width, {width}")
        table = make.table(anatomy.vocab_size, width, self.init_std or width**-0.5)
        return ValueEmbedding(table, self.gates, make)

    def hooks(self, anatomy: Anatomy, sites: list[LayerSite]) -> list[Hook]:
        """Behind the value projection of each layer that has a table."""
        layers = self.table_layers(len(sites))
        return [Hook(_projection(anatomy.layers[i]), AddToValues(sites[i]), False) for i in layers]


def _projection(layer: nn.Module) -> nn.Module:
    try:
        return layer.get_submodule(PROJECTION)
    except AttributeError:
        has = ", ".join(name for name, _ in layer.named_children())
        raise AttachError(f"{type(layer).__name__} has no {PROJECTION}; it has: {has}") from None


class ValueEmbedding(Rival):
    """Table [V, D], gate [G, 32]."""

    def __init__(self, table: TokenTable, gates: int, make: Maker) -> None:
        super().__init__(table)
        self.gate = make.parameter(gates, min(GATE_CHANNELS, table.width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A gate of 1 everywhere."""
        nn.init.zeros_(self.gate)

    def forward(self, values: Tensor, states: Tensor, rows: Tensor) -> Tensor:
        """Values with rows added, [B, S, D]; all of that shape, `states` what attention reads."""
        gates, channels = self.gate.shape
        gate = 2 * torch.sigmoid(states[..., :channels] @ self.gate.to(states.dtype).T)
        return values + (gate.unsqueeze(-1) * rows.unflatten(-1, (gates, -1))).flatten(-2)


class AddToValues(RivalHook):
    """Hook behind a value projection."""

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        context = self.site.context
        if context is None:
            raise AttachError("an attention ran without its model, which knows the token ids")
        return self.rival(output, args[0], self.rows(context, output))
