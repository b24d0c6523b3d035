"""How rows travel to a device beside its work: one side stream, and events to wait for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor


class Lane(Protocol):
    """How copies reach the device."""

    def copy(self, to: Tensor, of: Tensor) -> None:
        """Start a copy; those of one lane follow each other."""
        ...

    def launch(self, act: Callable[[], None], reads: Tensor) -> None:
        """Have the lane do what `act` starts, after its copies so far; it reads `reads`."""
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

    def capturing(self) -> bool:
        """Whether a graph is being captured of the device's work."""
        ...


class CudaLane:
    """A side stream."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)

    def copy(self, to: Tensor, of: Tensor) -> None:
        """Start a copy on the side stream."""
        with torch.cuda.stream(self.stream):
            to.copy_(of, non_blocking=True)

    def launch(self, act: Callable[[], None], reads: Tensor) -> None:
        """On the side stream; the allocator keeps what is read there until then."""
        with torch.cuda.stream(self.stream):
            act()
        reads.record_stream(self.stream)

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

    def capturing(self) -> bool:
        """Of the current stream."""
        return torch.cuda.is_current_stream_capturing()


class DirectLane:
    """For devices without streams: a copy is over when it returns."""

    def copy(self, to: Tensor, of: Tensor) -> None:
        """Copy."""
        to.copy_(of)

    def launch(self, act: Callable[[], None], reads: Tensor) -> None:
        """Do it."""
        act()

    def mark(self) -> Any:
        """Nothing to wait for."""

    def wait(self, event: Any) -> None:
        """Nothing to wait for."""

    def follow(self) -> None:
        """Nothing to wait for."""

    def finish(self, event: Any) -> None:
        """Nothing to wait for."""

    def capturing(self) -> bool:
        """There are no graphs."""
        return False
