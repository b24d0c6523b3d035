"""A corpus as the preparation sees it: a name, what it is made of, and documents that can be sought."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol


class TextStream(Protocol):
    """Documents in a fixed order."""

    def __iter__(self) -> Iterator[str]:
        """The documents from the current position on."""
        ...

    def position(self) -> dict[str, Any]:
        """JSON-able position behind the last document yielded."""
        ...

    def seek(self, position: dict[str, Any]) -> None:
        """Continues from a `position()` of an equal stream; call before iterating."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Where documents come from. `open` may be called any number of times and always yields the same."""

    name: str
    """What the caller asked for, or what stands in for it."""
    sources: tuple[dict[str, Any], ...]
    """One entry for each file, package or dataset: name, size, sha256, licence where known."""
    open: Callable[[], TextStream]
    """A fresh stream at the first document."""
    total_bytes: int | None = None
    """UTF-8 bytes of text where known beforehand (for progress only)."""
    notes: tuple[str, ...] = ()
    """What the manifest should say about this corpus."""


class CountedStream:
    """A stream over any repeatable iterator; seeking reads and drops: far cheaper than tokenizing."""

    def __init__(self, make: Callable[[], Iterator[str]]) -> None:
        self._make = make
        self._count = 0

    def __iter__(self) -> Iterator[str]:
        for text in islice(self._make(), self._count, None):
            self._count += 1
            yield text

    def position(self) -> dict[str, Any]:
        return {"documents": self._count}

    def seek(self, position: dict[str, Any]) -> None:
        self._count = int(position["documents"])
