"""Modulators made ready for passes: once, as long as their parameters stay where they are."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from retoken.nn.context import NearFetch
from retoken.nn.table import Fetched, Summed, TokenTable


class Prepared:
    """What a modulator's kernels need but a pass's positions, while its parameters stay where they are.

    Its table keeps it, so that it goes with the table, whose memory it points into.
    """

    __slots__ = ("_numbers", "_others", "_own", "_parameters", "_source", "ready")

    def __init__(self, module: nn.Module, source: object, ready: Any) -> None:
        """
        Args:
            module: the modulator.
            source: where its rows come from; None: its own table.
            ready: what its `ready` gave.
        """
        self._source, self.ready = source, ready
        self._own, self._numbers, self._others = module._parameters, _numbers(module), _others(module)
        self._parameters = [
            (owner._parameters, name, p, p.data_ptr(), p.dtype, p.shape)
            for owner in module.modules()
            for name, p in owner._parameters.items()
            if p is not None
        ]

    def holds(self, module: nn.Module, source: object) -> bool:
        """Whether it is of a modulator as it now is, and of rows from there."""
        if source is not self._source or module._parameters is not self._own:
            return False
        if self._numbers != _numbers(module) or self._others is not _others(module):
            return False
        for held_by, name, p, address, dtype, shape in self._parameters:
            if held_by.get(name) is not p or p.data_ptr() != address or p.dtype is not dtype:
                return False
            if p.shape != shape:
                return False
        return True

    def __reduce__(self) -> Any:
        """A copy has other memory: it is made ready anew."""
        return _nothing, ()


def _nothing() -> None:
    return None


def _numbers(module: nn.Module) -> tuple[Any, ...]:
    """What a modulator computes with beside its parameters."""
    get = module.__dict__.get
    return get("kernels"), get("eps"), get("gain"), get("top_k"), get("scale")


def _others(module: nn.Module) -> Any:
    """Its children beside the table."""
    return module._modules.get("router")


class Preparation(NamedTuple):
    """What the modulators of one pass are made ready with."""

    fetch: NearFetch | None
    """What was fetched for it; None: rows are in tables."""
    summed: torch.Size | None
    """[B, S, H] where a position's rows are summed."""

    def ready(self, layer: int, module: Any, ids: Tensor) -> Any:
        """What a layer's modulator does with states; None: no kernel can read its rows, or not yet."""
        table, fetch = module.table, self.fetch
        rows, source = (None, None) if fetch is None else (fetch.at_hand(layer), fetch.source)
        if rows is None and fetch is not None:
            return None
        if (known := table.prepared) is not None and known.holds(module, source):
            return known.ready
        rows = _resident(table, ids) if fetch is None else rows
        if rows is None:
            return None
        ready = module.ready(rows if self.summed is None else Summed(rows, self.summed))
        if ready is not None:
            table.prepared = Prepared(module, source, ready)
        return ready


def _resident(table: Any, ids: Tensor) -> Fetched | None:
    """The rows of ids in a table that is simply indexed."""
    return table.rows_of(ids) if type(table) is TokenTable else None
