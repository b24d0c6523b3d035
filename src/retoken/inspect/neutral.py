"""Taking modulation away for a while: a layer's scale, or tokens' rows, set to zero and put back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from retoken.nn import Modulator


def without_scales(modulators: Iterable[Modulator]) -> AbstractContextManager[None]:
    """Modulators that modulate nothing: their scales are zero."""
    return scales_times(modulators, 0.0)


@contextmanager
def scales_times(modulators: Iterable[Modulator], factor: float) -> Iterator[None]:
    """Modulators whose scales are multiplied."""
    kept = [(module.scale, module.scale.detach().clone()) for module in modulators]
    with torch.no_grad():
        for scale, _ in kept:
            scale.mul_(factor)
        try:
            yield
        finally:
            for scale, values in kept:
                scale.copy_(values)


@contextmanager
def without_rows(modulators: Iterable[Modulator], ids_R: Tensor) -> Iterator[None]:
    """Tokens whose rows are zero, which modulates nothing: Norm of a zero row is zero."""
    tables: list[Tensor] = [module.table.weight.detach() for module in modulators]
    kept = [table[ids_R.to(table.device)] for table in tables]
    with torch.no_grad():
        for table in tables:
            table[ids_R.to(table.device)] = 0
        try:
            yield
        finally:
            for table, rows in zip(tables, kept, strict=True):
                table[ids_R.to(table.device)] = rows
