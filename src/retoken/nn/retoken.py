"""ReToken (JTok): a gate on the MLP increment (Eq. 1-2)."""

from __future__ import annotations

import torch
from torch import Tensor

from retoken.config import ReTokenConfig
from retoken.nn.modulator import Modulator
from retoken.nn.table import Fetched, TableFactory, TokenTable
from retoken.ops import fused
from retoken.ops.norm import norm_gain


class ReToken(Modulator):
    """m -> m * (1 + s * Norm(E[x])) (Eq. 1-2). Table [V, D]."""

    def __init__(
        self,
        config: ReTokenConfig,
        vocab_size: int,
        hidden_size: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        table: TableFactory = TokenTable,
    ) -> None:
        super().__init__(config, (vocab_size, hidden_size), device, dtype, table)
        self.gain = norm_gain(config.norm, hidden_size)

    def ready(self, rows: Fetched) -> fused.Gate | None:
        """The gate of these rows, all but a pass put together; None: no kernel can read them."""
        near = self.kernels.near(rows, self.scale)
        if near is None or near.heads > 1:
            return None
        return fused.Gate(near, self.scale, self.gain, self.eps)

    def forward(self, increment: Tensor, ids: Tensor, fetched: Fetched | None = None) -> Tensor:
        """The gated increment, [B, S, D] in the increment's dtype, for ids [B, S] (Eq. 2)."""
        rows = self.rows_of(ids, fetched)
        if fused.serves(increment) and (ready := self.ready(rows)):
            return ready(increment)
        return self.kernels.gate(increment, rows, self.scale, self.gain, self.eps)
