"""What ReToken and MoRT share: a table and a scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retoken.config import MoRTConfig, ReTokenConfig
from retoken.nn.kernels import OPERATORS, Kernels
from retoken.nn.table import Fetched, Summed, TableFactory, TokenTable


def accept_checkpoint_keys(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Let `load_state_dict` take a checkpoint's names: transformers' Trainer resumes by it, not strictly."""
    for name in ("table", "router"):
        if prefix + name in state:
            state[f"{prefix}{name}.weight"] = state.pop(prefix + name)


class Modulator(nn.Module):
    """One layer's token-indexed parameters: `table`, and the learned `scale` [D] (s of Eq. 1 and 5)."""

    def __init__(
        self,
        config: ReTokenConfig | MoRTConfig,
        shape: tuple[int, ...],
        device: torch.device | None,
        dtype: torch.dtype | None,
        table: TableFactory = TokenTable,
    ) -> None:
        super().__init__()
        self.eps, self.init_scale = config.eps, config.init_scale
        self.sums_rows = config.sums_rows
        self.kernels: Kernels = OPERATORS
        self.table = table(shape, config.init_std, device, dtype)
        self.scale = nn.Parameter(torch.empty(shape[-1], device=device, dtype=dtype))
        nn.init.constant_(self.scale, self.init_scale)
        self.register_load_state_dict_pre_hook(accept_checkpoint_keys)

    def reset_parameters(self) -> None:
        """Start values of what this module owns itself; the table and the router reset their own."""
        nn.init.constant_(self.scale, self.init_scale)

    def lookup(self, ids: Tensor) -> Tensor:
        """The rows of token ids [...]: [..., D] (ReToken) or [..., E, D] (MoRT)."""
        return self.rows_of(ids).lookup()

    def rows_of(self, ids: Tensor, fetched: Fetched | None = None) -> Fetched:
        """The rows of ids [...], wherever they are; of ids [..., H] the sums, where rows are summed."""
        rows = self.table.rows_of(ids, fetched)
        return Summed(rows, ids.shape) if self.sums_rows else rows
