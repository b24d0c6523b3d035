"""Tables from which tokens were left out: their rows are zero, modulate nothing, and share one record."""

from __future__ import annotations

import torch
from torch import Tensor

from retoken.errors import ConfigError
from retoken.serving.reader import RowReader

NUMBERS = "retoken.numbers"
"""The tensor of a packed file that says which record each token has."""
PRUNED_VERSION = 2
"""Of a packed file that has it."""


class PrunedReader:
    """A reader whose rows are zero but for those of the tokens that are kept."""

    def __init__(self, reader: RowReader, kept_V: Tensor) -> None:
        """Reads nothing.

        Args:
            reader: the rows of all tokens.
            kept_V: [V] bool.

        Raises:
            ConfigError: another shape or type.
        """
        numbered(kept_V, reader.shape()[0])
        self._reader, self._kept_V = reader, kept_V
        self.folded, self.shape = reader.folded, reader.shape

    def block(self, start: int, stop: int) -> dict[int, Tensor]:
        """Rows of successive tokens."""
        return self._masked(self._reader.block(start, stop), self._kept_V[start:stop])

    def some(self, ids: Tensor) -> dict[int, Tensor]:
        """Rows of any tokens."""
        return self._masked(self._reader.some(ids), self._kept_V[ids])

    def _masked(self, rows: dict[int, Tensor], kept_R: Tensor) -> dict[int, Tensor]:
        if bool(kept_R.all()):
            return rows
        return {layer: part.masked_fill(_like(~kept_R, part), 0) for layer, part in rows.items()}


def _like(mask_R: Tensor, rows: Tensor) -> Tensor:
    """The mask, to be broadcast over rows [R, ...]."""
    return mask_R.to(rows.device).view(-1, *[1] * (rows.dim() - 1))


def numbered(kept_V: Tensor, vocab_size: int) -> Tensor:
    """[V] int32: the record of each token: from 1 in order of ids; 0, the zero record, where none is kept.

    Raises:
        ConfigError: not one bool a token.
    """
    if kept_V.dtype != torch.bool or tuple(kept_V.shape) != (vocab_size,):
        raise ConfigError(
            f"kept is {kept_V.dtype} {list(kept_V.shape)}; accepted: a bool for each of {vocab_size} tokens"
        )
    return torch.where(kept_V, kept_V.cumsum(0), 0).to(torch.int32)


def padded(number_V: Tensor, align: int) -> Tensor:
    """The numbers with zeros behind them, to a multiple of `align` bytes: records follow aligned."""
    return torch.nn.functional.pad(number_V, (0, -len(number_V) % (align // number_V.itemsize)))
