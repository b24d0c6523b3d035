"""Per-layer embeddings: a row per token and layer, gated by the state and projected back behind the layer.

After Gemma 3n as transformers has it (modeling_gemma3n.py, Apache-2.0):
u_l = (sqrt(w) E_l[x] + RMSNorm(P_l e / sqrt(D))) / sqrt(2), with e the input embedding;
h = h + RMSNorm(W_l (gelu(G_l h) * u_l)). Its rows are 256 wide at D 2048; here size 1 makes them as wide as
the model, so that they store what ReToken's do. AltUp and LAuReL, the family's other parts, are not here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from retoken.attach.families import Anatomy
from retoken.attach.rivals.base import Maker, Rival, RivalConfig, RivalHook, entered, rms_norm
from retoken.attach.sites import Hook, LayerSite, on_first
from retoken.nn import TokenTable


@dataclass(frozen=True, kw_only=True)
class PerLayerConfig(RivalConfig):
    """h + RMSNorm(W (gelu(G h) * u)), u of the token's row and its embedding."""

    type: ClassVar[str] = "per_layer"

    init_std: float = 0.0
    """Standard deviation of the rows at the start; 0: one over the root of their width."""

    def width(self, hidden_size: int) -> int:
        """w, the numbers of a row."""
        return max(1, round(self.size * hidden_size))

    def table_params(self, vocab_size: int, hidden_size: int, num_layers: int) -> int:
        """Rows times their own width."""
        return len(self.table_layers(num_layers)) * vocab_size * self.width(hidden_size)

    def other_params(self, hidden_size: int, num_layers: int) -> int:
        """Three projections and two norms a layer."""
        width = self.width(hidden_size)
        return len(self.table_layers(num_layers)) * (3 * width * hidden_size + width + hidden_size)

    def flops_per_token(self, hidden_size: int, num_layers: int) -> float:
        """Two for each element of the three projections."""
        return 6.0 * self.width(hidden_size) * hidden_size * len(self.table_layers(num_layers))

    def build(self, anatomy: Anatomy, layer: int, make: Maker) -> PerLayer:
        """The module of a layer."""
        width = self.width(anatomy.hidden_size)
        table = make.table(anatomy.vocab_size, width, self.init_std or width**-0.5)
        return PerLayer(table, anatomy.hidden_size, self.init_scale, make)

    def hooks(self, anatomy: Anatomy, sites: list[LayerSite]) -> list[Hook]:
        """Before the first layer, to keep its input; behind each layer that has a table."""
        layers = self.table_layers(len(sites))
        keep = Hook(anatomy.layers[0], KeepEmbedded(sites[0]), True)
        return [keep, *(Hook(anatomy.layers[i], AddBehind(sites[i]), False, named=True) for i in layers)]


class PerLayer(Rival):
    """Table [V, w]; gate and context [w, D], projection [D, w]; gains `scale` [D], `context_scale` [w]."""

    def __init__(self, table: TokenTable, hidden_size: int, start: float, make: Maker) -> None:
        super().__init__(table)
        self.start = start
        self.gate = make.parameter(table.width, hidden_size)
        self.projection = make.parameter(hidden_size, table.width)
        self.context = make.parameter(table.width, hidden_size)
        self.scale = make.parameter(hidden_size)
        self.context_scale = make.parameter(table.width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections that keep sizes; gains of 1 within, of the start value on what is added."""
        for matrix in (self.gate, self.projection, self.context):
            nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5)
        nn.init.constant_(self.scale, self.start)
        nn.init.ones_(self.context_scale)

    def forward(self, hidden: Tensor, embedded: Tensor, rows: Tensor) -> Tensor:
        """Hidden states behind the layer, with what the token adds, from e = `embedded`; all [B, S, D]."""
        width, hidden_size = self.gate.shape
        about = F.linear(embedded * hidden_size**-0.5, self.context.to(hidden.dtype))
        row = (math.sqrt(width) * rows + rms_norm(about, self.context_scale)) / math.sqrt(2)
        gate = F.gelu(F.linear(hidden, self.gate.to(hidden.dtype)), approximate="tanh")
        return hidden + rms_norm(F.linear(gate * row, self.projection.to(hidden.dtype)), self.scale)


class KeepEmbedded(RivalHook):
    """Hook before the first layer."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, context = entered(args, kwargs)
        context.embedded = hidden


class AddBehind(RivalHook):
    """Hook behind a decoder layer."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        _, context = entered(args, kwargs)
        return on_first(output, lambda x: self.rival(x, context.embedded, self.rows(context, x)))
