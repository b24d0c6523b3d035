"""Tables of one process, trained by the rows a batch reads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from retoken.nn import ModulatorStack, Rows, TokenTable
from retoken.rows.gradient import FetchRows

BeforeRead = Callable[[nn.Parameter, Tensor], None]
"""Told which rows [R] of a table are about to be read: decay that waited for it is applied then."""


class Arrived:
    """The rows of one pass, all of them here."""

    def __init__(self, rows: dict[int, Tensor], positions: Tensor) -> None:
        self._rows, self._positions = rows, positions

    def arrived(self, layer: int) -> Rows:
        """The rows of a layer."""
        return Rows(self._positions, self._rows[layer])


class LocalRows:
    """Gathers a pass's rows once, each token's once, and brings their gradients back as row-sparse ones.

    The stack's tables keep their parameters; only their gradients change. Without gradients layers look rows
    up themselves.
    """

    def __init__(self, stack: nn.Module) -> None:
        self.stack = stack
        self.before_read: list[BeforeRead] = []

    @property
    def tables(self) -> dict[int, TokenTable]:
        """{layer: its table}, looked up anew: weights are replaced when a model moves or grows."""
        layers: nn.ModuleDict = self.stack.layers  # pyright: ignore
        return {int(layer): module.table for layer, module in layers.items()}  # pyright: ignore

    @torch.compiler.disable
    def fetch(self, ids: Tensor) -> Arrived | None:
        """The rows of ids [B, S], with a gradient path; None where no gradient is wanted."""
        if not torch.is_grad_enabled():
            self.settle(ids.unique() if self.before_read else ids)
            return None
        ids_R, positions = torch.unique(ids, return_inverse=True)
        self.settle(ids_R)
        rows = {layer: self.gather(layer, table, ids_R) for layer, table in self.tables.items()}
        return Arrived(rows, positions)

    def gather(self, layer: int, table: TokenTable, ids_R: Tensor) -> Tensor:
        """A layer's rows of `ids_R`."""
        weight = table.weight
        ids_R = ids_R.to(weight.device)
        return FetchRows.apply(weight, ids_R, weight.detach().index_select(0, ids_R))  # pyright: ignore

    def prefetch(self, ids: Tensor) -> None:
        """Nothing to gain: the rows are where they are used."""

    def settle(self, ids_R: Tensor) -> None:
        """Tell those who want to know that these rows are about to be read."""
        for act in self.before_read:
            for table in self.tables.values():
                act(table.weight, ids_R.to(table.weight.device))


def train_by_rows(stack: ModulatorStack) -> LocalRows:
    """Give the tables of a stack row-sparse gradients from now on; the optimizer has to take such ones."""
    source = LocalRows(stack)
    stack.source = source  # pyright: ignore
    return source
