"""Rows on their way from host memory to a device: fixed buffers, one side stream, an event a layer.

Rows are gathered by the host into page-locked memory where the system grants it, ordinary memory where not,
and copied: those of a few positions all at once, of many layer by layer, so that the first layers can start
before the last ones' rows are there. Two sets of buffers take turns, so that the rows of the next pass can
travel while this one computes. Where a graph has been captured, the set that it reads keeps its place and
gets the rows of every pass that fits: `prefetch` and `wait` then stand before each replay. `serving.direct`
has the device gather rows instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from retoken.errors import ConfigError
from retoken.serving.lane import CudaLane, DirectLane, Lane
from retoken.serving.layout import RecordLayout

CAPACITY = 64
"""Positions that buffers hold from the start; a longer pass makes them grow."""

Gather = Callable[[Tensor], Tensor]
"""Records [R, record_bytes] in host memory, of token ids [R]."""


class Buffers:
    """Room for the rows of a pass, on the device and, where it gathers, on the host."""

    def __init__(
        self, layout: RecordLayout, capacity: int, device: torch.device, by_host: bool = True
    ) -> None:
        self.capacity = capacity
        """Positions there is room for."""
        self._layers, self._staged_bytes = len(layout.layers), layout.staged_bytes
        size = self._layers * capacity * self._staged_bytes
        self._host = _page_locked(size, device) if by_host else None
        self._device = torch.empty(size, dtype=torch.uint8, device=device)
        self.device = self.on_device(capacity)
        """Of the pass in it: [L, R, staged bytes]."""
        self._numbers = torch.arange(capacity, device=device)
        self.ids: Tensor | None = None
        self.positions: Tensor | None = None
        self.events: list[Any] = []
        self.waited = True

    def on_device(self, count: int) -> Tensor:
        """Room for `count` records, [L, count, staged bytes], all layers side by side."""
        return self._of(self._device, count)

    def on_host(self, count: int) -> Tensor:
        """The same where the host gathers."""
        assert self._host is not None
        return self._of(self._host, count)

    def _of(self, room: Tensor, count: int) -> Tensor:
        return room[: self._layers * count * self._staged_bytes].view(self._layers, count, -1)

    def in_order(self, shape: torch.Size) -> Tensor:
        """Positions of a pass of that shape, each with a record of its own; they keep their address."""
        return self._numbers[: shape.numel()].view(shape)


def _page_locked(size: int, device: torch.device) -> Tensor:
    """Bytes that a device copies from without the host's help, where the system grants it."""
    if device.type == "cuda":
        try:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # no right to lock pages: copies then wait for the host, and are as right
            pass
    return torch.empty(size, dtype=torch.uint8)


class Stage:
    """The buffers of one model."""

    gathered_by: Literal["host", "device"] = "host"
    """Who gathers records."""
    at_once = 1 << 26
    """Bytes of a pass up to which the rows of all layers travel together; of a larger one layer by layer.
    `studies/inference` has both ways on a GPU, up to 88 MB."""

    def __init__(
        self, layout: RecordLayout, gather: Gather, device: torch.device, capacity: int = CAPACITY
    ) -> None:
        self.layout, self.gather, self.device = layout, gather, device
        self.lane: Lane = CudaLane(device) if device.type == "cuda" else DirectLane()
        self._sets = [self._buffers(capacity) for _ in range(2)]
        self._latest, self._captured = self._sets[0], False

    def prefetch(self, ids: Tensor) -> Buffers:
        """Start copying the rows of ids [B, S]; `fetch` of the same ids finds them."""
        if not self._captured:
            self._sets.reverse()
        rows, positions = ids.reshape(-1), None
        if ids.numel() > self._sets[0].capacity:
            rows, positions = torch.unique(ids, return_inverse=True)
        into = self._room(len(rows))
        self._fill(into, rows)
        into.ids, into.waited = ids.clone(), False  # the caller may write the next pass's into them
        into.positions = into.in_order(ids.shape) if positions is None else positions.to(self.device)
        self._latest = into
        return into

    def fetch(self, ids: Tensor) -> Buffers:
        """The rows of ids [B, S], on their way."""
        if self.lane.capturing():
            return self._capture(ids)
        latest = self._latest
        if latest.ids is not None and not latest.waited and torch.equal(latest.ids.to(ids.device), ids):
            return latest
        return self.prefetch(ids)

    def forget(self) -> None:
        """Records are about to change: what is on its way of the next pass is fetched again."""
        self._latest.ids = None

    def wait(self) -> None:
        """Have the device wait for all rows on their way: before the replay of a graph."""
        for event in self._latest.events[-1:]:  # events of one stream happen in order
            self.lane.wait(event)

    def rows(self, buffers: Buffers, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A layer's rows [R, D] or [R, E, D], arrived, and which of them each position has."""
        number = self.layout.layers.index(layer)
        if not (buffers is self._sets[0] and self.lane.capturing()):  # a graph waits before its replays
            self.lane.wait(buffers.events[number])
        buffers.waited = True
        return self.layout.decode_part(buffers.device[number], dtype), buffers.positions  # pyright: ignore

    def _room(self, count: int) -> Buffers:
        """The set whose turn it is, larger where it has to be; the one that a graph reads never moves."""
        room = self._sets[0]
        if count > room.capacity:
            for event in (*room.events[-1:], *self._latest.events[-1:]):  # memory that may be given away
                self.lane.wait(event)
            room = self._buffers(count + count // 4)
            if not self._captured:
                self._sets[0] = room
        return room

    def _buffers(self, capacity: int) -> Buffers:
        return Buffers(self.layout, capacity, self.device)

    def _capture(self, ids: Tensor) -> Buffers:
        """The set that replays read: what `prefetch` puts there before each.

        Raises:
            ConfigError: the pass has more positions than it has room.
        """
        room = self._sets[0]
        if ids.numel() > room.capacity:
            raise ConfigError(
                f"a graph is captured of a pass of {ids.numel()} positions, and the buffers that its replays "
                f'read have room for {room.capacity}; accepted: as many, or gather="device"'
            )
        self._captured, room.positions = True, room.in_order(ids.shape)
        room.device = room.on_device(ids.numel())
        return room

    def _fill(self, into: Buffers, ids_R: Tensor) -> None:
        """Gather the records of ids and copy them, all layers at once or one by one; events follow."""
        self.lane.follow()
        records = self.gather(ids_R.cpu())
        if into.events:
            self.lane.finish(into.events[-1])
        into.device, host = into.on_device(len(records)), into.on_host(len(records))
        layers, into.events = len(self.layout.layers), []
        step = layers if host.nbytes <= self.at_once else 1
        for first in range(0, layers, step):
            self.layout.parts_of(records, first, out=host[first : first + step])
            self.lane.copy(into.device[first : first + step], host[first : first + step])
            into.events += [self.lane.mark()] * step
