"""Engram: rows of hashed n-grams, gated by how well they fit the state, added before a few layers.

After Cheng et al., Conditional Memory via Scalable Lookup (arXiv 2601.07372), and its demonstration code
(github.com/deepseek-ai/Engram, Apache-2.0). With e the rows of all hashes side by side, k = W_K e, v = W_V e,
a = RMSNorm(h) . RMSNorm(k) / sqrt(D) and v' = sigmoid(sign(a) sqrt(|a|)) v:
h = h + v' + SiLU(Conv(RMSNorm(v'))), a depthwise causal convolution of 4 positions that lie 3 apart, starting
at zero. Of the paper's parts the merging of token ids that differ in case or spacing is not here: it needs
the tokenizer. Its two layers of 30 are the second and the middle one, as here; all layers hash alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retoken.attach.families import Anatomy
from retoken.attach.rivals.base import Maker, NgramConfig, Rival, RivalHook, enter_with, entered, rms_norm
from retoken.attach.sites import Hook, LayerSite
from retoken.nn import TokenTable

KERNEL, DILATION = 4, 3
SMALLEST = 1e-6
"""|a| is at least this before the root, whose slope at 0 is infinite."""


@dataclass(frozen=True, kw_only=True)
class EngramConfig(NgramConfig):
    """h + v' + SiLU(Conv(RMSNorm(v'))), v' the gated value of the n-gram's rows."""

    type: ClassVar[str] = "engram"
    orders: ClassVar[tuple[int, ...]] = (2, 3)
    resumes: ClassVar[bool] = False  # its convolution reads gated values up to nine positions back

    hashes: int = 4
    """Hashes of each order; a row is 1 / (2 * hashes) as wide as the model."""
    init_std: float = 0.02
    """Standard deviation of the rows at the start."""

    def table_layers(self, num_layers: int) -> tuple[int, ...]:
        """The second and the middle one, unless `layers` says otherwise."""
        if self.layers is not None:
            return super().table_layers(num_layers)
        return tuple(sorted({min(1, num_layers - 1), num_layers // 2}))

    def other_params(self, hidden_size: int, num_layers: int) -> int:
        """Two projections, a convolution and three norms a layer."""
        return len(self.table_layers(num_layers)) * (2 * hidden_size**2 + (KERNEL + 3) * hidden_size)

    def flops_per_token(self, hidden_size: int, num_layers: int) -> float:
        """Two for each element of projections and kernel, and 4d for the gate and adding, a layer."""
        per_layer = 4 * hidden_size**2 + (2 * KERNEL + 4) * hidden_size
        return float(per_layer * len(self.table_layers(num_layers)))

    def build(self, anatomy: Anatomy, layer: int, make: Maker) -> Engram:
        """The module of a layer."""
        return Engram(self.make_table(anatomy, make), anatomy.hidden_size, self.init_scale, make)

    def hooks(self, anatomy: Anatomy, sites: list[LayerSite]) -> list[Hook]:
        """Before each layer that has a table."""
        layers = self.table_layers(len(sites))
        return [Hook(anatomy.layers[i], AddMemory(sites[i]), True) for i in layers]


class Engram(Rival):
    """Table [H * rows, D / H]; key and value [D, D], kernel [D, 1, 4]; norm gains [D]."""

    def __init__(self, table: TokenTable, hidden_size: int, start: float, make: Maker) -> None:
        super().__init__(table)
        self.start = start
        self.key = make.parameter(hidden_size, hidden_size)
        self.value = make.parameter(hidden_size, hidden_size)
        self.kernel = make.parameter(hidden_size, 1, KERNEL)
        self.query_scale = make.parameter(hidden_size)
        self.key_scale = make.parameter(hidden_size)
        self.conv_scale = make.parameter(hidden_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Projections that keep sizes, the value's times the start value; no convolution; gains of 1."""
        width = self.key.shape[1]
        nn.init.normal_(self.key, std=width**-0.5)
        nn.init.normal_(self.value, std=self.start * width**-0.5)
        nn.init.zeros_(self.kernel)
        for gain in (self.query_scale, self.key_scale, self.conv_scale):
            nn.init.ones_(gain)

    def forward(self, hidden: Tensor, rows: Tensor, present: Tensor | None = None) -> Tensor:
        """Hidden states [B, S, D] with the memory of rows [B, S, D] added.

        `present` [B, S] is false at padding, of which the convolution is to see nothing.
        """
        key, value = (F.linear(rows, m.to(hidden.dtype)) for m in (self.key, self.value))
        fit = (rms_norm(hidden, self.query_scale) * rms_norm(key, self.key_scale)).sum(-1, keepdim=True)
        fit = fit / math.sqrt(hidden.shape[-1])
        gated = torch.sigmoid(fit.abs().clamp_min(SMALLEST).sqrt() * fit.sign()) * value
        if present is not None:
            gated = gated * present.unsqueeze(-1)
        return hidden + gated + self._blurred(gated)

    def _blurred(self, gated: Tensor) -> Tensor:
        """SiLU of the causal convolution of normed values [B, S, D]."""
        channels = rms_norm(gated, self.conv_scale).transpose(1, 2)
        reach = F.pad(channels, ((KERNEL - 1) * DILATION, 0))
        kernel = self.kernel.to(gated.dtype)
        return F.silu(F.conv1d(reach, kernel, dilation=DILATION, groups=len(kernel))).transpose(1, 2)


class AddMemory(RivalHook):
    """Hook before a decoder layer."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, context = entered(args, kwargs)
        added = self.rival(hidden, self.rows(context, hidden), context.mask)
        return enter_with(added, args, kwargs)
