"""Batches with a look at the one after: what its rows are asked for by."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from retoken.data.tokens import WindowReader


class BatchQueue:
    """A reader's batches in order; its state is that of the next batch to be taken, looked at or not."""

    def __init__(self, reader: WindowReader) -> None:
        self._reader = reader
        self._next: Tensor | None = None
        self._state = reader.state_dict()

    def next_batch(self) -> Tensor:
        """The next windows [B, W] of this process."""
        batch = self.upcoming()
        self._next, self._state = None, self._reader.state_dict()
        return batch

    def upcoming(self) -> Tensor:
        """What `next_batch` will give."""
        if self._next is None:
            self._next = self._reader.next_batch()
        return self._next

    def state_dict(self) -> dict[str, Any]:
        """As the reader's, before the next batch."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that was taken here."""
        self._reader.load_state_dict(state)
        self._next, self._state = None, self._reader.state_dict()
