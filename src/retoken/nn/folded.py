"""Modulators whose scale and norm have been worked into their rows: for inference only (Eq. 8)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from retoken.config import ModulatorConfig, MoRTConfig
from retoken.nn.kernels import OPERATORS, Kernels
from retoken.nn.landing import Landing
from retoken.nn.mort import Choice, Router, choice
from retoken.nn.table import Fetched, Summed, TableFactory, TokenTable
from retoken.ops import Routing, fused, normalize
from retoken.ops.norm import norm_gain
from retoken.ops.precision import widen

FOLD_BLOCK = 4096


class FoldedReToken(nn.Module):
    """m -> m * P[x], P = 1 + s * Norm(E) (Eq. 8).

    Table [V, D] holds P - 1, which a short type keeps to more digits than a number near 1.
    """

    def __init__(self, table: TokenTable) -> None:
        super().__init__()
        self.kernels: Kernels = OPERATORS
        self.table = table.requires_grad_(False)

    def lookup(self, ids: Tensor) -> Tensor:
        """P of token ids [...]: [..., D], float32 or wider."""
        return 1 + widen(self.table.lookup(ids))

    def ready(self, rows: Fetched) -> fused.Gate | None:
        """As `ReToken.ready`."""
        near = self.kernels.near(rows)
        return near and fused.Gate(near, None, 1.0, 0.0)

    def forward(self, increment: Tensor, ids: Tensor, fetched: Fetched | None = None) -> Tensor:
        """The gated increment, [B, S, D] in the increment's dtype, for ids [B, S] (Eq. 2)."""
        rows = self.table.rows_of(ids, fetched)
        if fused.serves(increment) and (ready := self.ready(rows)):
            return ready(increment)
        return self.kernels.gate(increment, rows, None, 1.0, 0.0)


class FoldedMoRT(nn.Module):
    """MoRT with what does not depend on the token's state worked in. Table [V, E, D].

    With K = 1 the only weight is exactly 1, so the table holds s * Norm(E_i) / sqrt(2 N_l) and a chosen row
    is the residual. With K > 1, or where a position's rows are summed, Norm is of the mixture: no row can
    hold it, so rows stay as they are and `scale` is s times everything that is constant (Eq. 5).
    """

    def __init__(self, config: MoRTConfig, table: TokenTable, router: Router) -> None:
        super().__init__()
        self.top_k, self.eps, self.sums_rows = config.top_k, config.eps, config.sums_rows
        self.kernels: Kernels = OPERATORS
        self.table, self.router = table.requires_grad_(False), router.requires_grad_(False)
        self.scale: nn.Parameter | None = None

    def give_scale(self, scale: Tensor) -> None:
        """Take the merged scale [D]."""
        self.scale = nn.Parameter(scale, requires_grad=False)

    def lookup(self, ids: Tensor) -> Tensor:
        """The rows of token ids [...]: [..., E, D]."""
        return self.rows_of(ids).lookup()

    def rows_of(self, ids: Tensor, fetched: Fetched | None = None) -> Fetched:
        """As `Modulator.rows_of`."""
        rows = self.table.rows_of(ids, fetched)
        return Summed(rows, ids.shape) if self.sums_rows else rows

    def ready(self, rows: Fetched) -> Choice | None:
        """As `MoRT.ready`."""
        return choice(self.kernels, rows, self.router, self.top_k, self.scale, 1.0, self.eps)

    def forward(self, hidden: Tensor, ids: Tensor, fetched: Fetched | None = None) -> tuple[Landing, Routing]:
        """The residual [B, S, D] and the choice (Eq. 3-5)."""
        rows = self.rows_of(ids, fetched)
        if fused.serves(hidden) and (ready := self.ready(rows)):
            return ready(hidden)
        routing = self.router(hidden, self.top_k, self.kernels)
        return self.kernels.residual(rows, routing, self.scale, 1.0, self.eps), routing


Folded = FoldedReToken | FoldedMoRT


def build_folded(
    config: ModulatorConfig,
    vocab_size: int,
    hidden_size: int,
    device: torch.device | None,
    dtype: torch.dtype | None,
    table: TableFactory = TokenTable,
) -> Folded:
    """The module one layer of a folded model carries, its rows still to be filled in."""
    vocab_size = config.table_rows(vocab_size)
    if not isinstance(config, MoRTConfig):
        return FoldedReToken(table((vocab_size, hidden_size), config.init_std, device, dtype))
    rows = table((vocab_size, config.num_modulators, hidden_size), config.init_std, device, dtype)
    router = Router(config.num_modulators, hidden_size, device, dtype)
    folded = FoldedMoRT(config, rows, router)
    if not config.folds_rows:
        folded.give_scale(torch.ones(hidden_size, device=device, dtype=dtype))
    return folded


@torch.no_grad()
def fold_modulator(config: ModulatorConfig, module: nn.Module, num_layers: int) -> Folded:
    """A modulator's folded form (Eq. 8). It takes over the table, whose rows change in place."""
    folded = _folded(config, module, num_layers)
    folded.kernels = module.kernels  # pyright: ignore
    return folded


def _folded(config: ModulatorConfig, module: nn.Module, num_layers: int) -> Folded:
    gain = norm_gain(config.norm, module.scale.shape[0])  # pyright: ignore
    if not isinstance(config, MoRTConfig):
        _fold_rows(module.table.weight, module.scale, gain, config.eps)  # pyright: ignore
        return FoldedReToken(module.table)  # pyright: ignore
    gain /= math.sqrt(2 * num_layers)
    folded = FoldedMoRT(config, module.table, module.router)  # pyright: ignore
    if config.folds_rows:
        _fold_rows(module.table.weight, module.scale, gain, config.eps)  # pyright: ignore
    else:
        scale: Tensor = module.scale  # pyright: ignore
        folded.give_scale((widen(scale) * gain).to(scale.dtype))
    return folded


def _fold_rows(weight: Tensor, scale: Tensor, gain: float, eps: float) -> None:
    """rows <- scale * Norm(rows), rounded once to the table's type."""
    for block in weight.detach().split(FOLD_BLOCK):
        block.copy_(widen(scale) * normalize(block, gain, eps))
