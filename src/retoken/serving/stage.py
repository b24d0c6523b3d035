"""Rows on their way from host memory to a device: fixed buffers, one side stream, an event a layer.

Rows are gathered on the host into page-locked memory where the system grants it, ordinary memory where not,
and copied layer by layer, so that the first layers can start before the last ones' rows are there. Two sets
of buffers take turns, so that the rows of the next pass can travel while this one computes. Where a graph
has been captured, the set that it reads keeps its place and gets the rows of every pass that fits:
`prefetch` and `wait` then stand before each replay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from retoken.serving.layout import RecordLayout

CAPACITY = 64
"""Positions that buffers hold from the start; a longer pass makes them grow."""

Gather = Callable[[Tensor], Tensor]
"""Records [R, record_bytes] in host memory, of token ids [R]."""


class Lane(Protocol):
    """How copies reach the device."""

    def copy(self, to: Tensor, of: Tensor) -> None:
        """Start a copy; those of one lane follow each other."""
        ...

    def mark(self) -> Any:
        """An event after all copies so far."""
        ...

    def wait(self, event: Any) -> None:
        """Have the device's work from here on wait for an event."""
        ...

    def follow(self) -> None:
        """Have copies from here on wait for the work the device has been given."""
        ...

    def finish(self, event: Any) -> None:
        """Wait here until an event has happened."""
        ...


class CudaLane:
    """A side stream."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def copy(self, to: Tensor, of: Tensor) -> None:
        """Start a copy on the side stream."""
        with torch.cuda.stream(self.stream):
            to.copy_(of, non_blocking=True)

    def mark(self) -> Any:
        """An event on the side stream."""
        return self.stream.record_event()

    def wait(self, event: Any) -> None:
        """The current stream waits; nobody on the host does."""
        torch.cuda.current_stream().wait_event(event)

    def follow(self) -> None:
        """The side stream waits for the current one: it may still read what is about to be overwritten."""
        self.stream.wait_stream(torch.cuda.current_stream())

    def finish(self, event: Any) -> None:
        """The host waits: memory that is still being copied from must not change."""
        event.synchronize()


class DirectLane:
    """For devices without streams: a copy is over when it returns."""

    def copy(self, to: Tensor, of: Tensor) -> None:
        """Copy."""
        to.copy_(of)

    def mark(self) -> Any:
        """Nothing to wait for."""

    def wait(self, event: Any) -> None:
        """Nothing to wait for."""

    def follow(self) -> None:
        """Nothing to wait for."""

    def finish(self, event: Any) -> None:
        """Nothing to wait for."""


class Buffers:
    """Room for the rows of one pass, on the host and on the device: [L, capacity, part bytes] each."""

    def __init__(self, layout: RecordLayout, capacity: int, device: torch.device) -> None:
        shape = (len(layout.layers), capacity, layout.part_bytes + layout.layer_scale_bytes)
        self.host = _page_locked(shape, device)
        self.device = torch.empty(shape, dtype=torch.uint8, device=device)
        self.ids: Tensor | None = None
        self.positions: Tensor | None = None
        self.events: list[Any] = []
        self.waited = True

    @property
    def capacity(self) -> int:
        """Positions there is room for."""
        return self.device.shape[1]


def _page_locked(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Memory that a device copies from without the host's help, where the system grants it."""
    if device.type == "cuda":
        try:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:  # no right to lock pages: copies then wait for the host, and are as right
            pass
    return torch.empty(shape, dtype=torch.uint8)


class Stage:
    """The buffers of one model."""

    def __init__(
        self, layout: RecordLayout, gather: Gather, device: torch.device, capacity: int = CAPACITY
    ) -> None:
        self.layout, self.gather, self.device = layout, gather, device
        self.lane: Lane = CudaLane(device) if device.type == "cuda" else DirectLane()
        self._sets = [Buffers(layout, capacity, device) for _ in range(2)]
        self._latest, self._captured = self._sets[0], False

    def prefetch(self, ids: Tensor) -> Buffers:
        """Start copying the rows of ids [B, S]; `fetch` of the same ids finds them."""
        if not self._captured:
            self._sets.reverse()
        rows, positions = ids.reshape(-1), torch.arange(ids.numel()).view(ids.shape)
        if ids.numel() > self._sets[0].capacity:
            rows, positions = torch.unique(ids, return_inverse=True)
        into = self._room(len(rows))
        self.lane.follow()
        self._fill(into, self.gather(rows.cpu()))
        into.ids, into.positions, into.waited = ids, positions.to(self.device), False
        self._latest = into
        return into

    def fetch(self, ids: Tensor) -> Buffers:
        """The rows of ids [B, S], on their way."""
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            self._captured = True  # a replay reads what `prefetch` puts there before it
            return self._sets[0]
        latest = self._latest
        if latest.ids is not None and not latest.waited and torch.equal(latest.ids, ids):
            return latest
        return self.prefetch(ids)

    def wait(self) -> None:
        """Have the device wait for all rows on their way: before the replay of a graph."""
        for event in self._latest.events:
            self.lane.wait(event)

    def rows(self, buffers: Buffers, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A layer's rows [R, D] or [R, E, D], arrived, and which of them each position has."""
        number = self.layout.layers.index(layer)
        if not self._captured or buffers is not self._sets[0]:
            self.lane.wait(buffers.events[number])
        buffers.waited = True
        return self.layout.decode_part(buffers.device[number], dtype), buffers.positions  # pyright: ignore

    def _room(self, count: int) -> Buffers:
        """The set whose turn it is, larger where it has to be; the one that a graph reads never moves."""
        room = self._sets[0]
        if count > room.capacity:
            room = Buffers(self.layout, count + count // 4, self.device)
            if not self._captured:
                self._sets[0] = room
        return room

    def _fill(self, into: Buffers, records: Tensor) -> None:
        """Copy records [R, record_bytes] layer by layer; each layer's event follows its copy."""
        if into.events:
            self.lane.finish(into.events[-1])
        into.events = []
        for number in range(len(self.layout.layers)):
            host = into.host[number, : len(records)]
            self.layout.part_of(records, number, out=host)
            self.lane.copy(into.device[number, : len(records)], host)
            into.events.append(self.lane.mark())
