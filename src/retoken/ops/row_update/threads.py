"""Rows divided among threads: plain ones that live as long as a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread

Work = tuple[int, int, Callable[[int, int], None]]
"""How many rows, how few are worth a call, and what does rows start to stop, without Python's lock."""
CHUNKS = 4
"""That a thread finds of each work, on average: more of them share better, and cost more calls."""


def divide(works: Sequence[Work], threads: int) -> None:
    """Threads take chunks until none is left; the caller is one of them. The first exception is raised here.

    A thread that starts late, or has to share its core, takes fewer: nobody waits for a part it was given.
    There are at most half as many threads as chunks.
    """
    chunks = [chunk for work in works for chunk in _chunks(*work, threads)]
    left, errors = iter(chunks), []

    def take() -> None:
        try:
            for work, start, stop in left:
                work(start, stop)
        except BaseException as error:
            errors.append(error)

    others = [Thread(target=take) for _ in range(min(threads, len(chunks) // 2) - 1)]
    for other in others:
        other.start()
    take()
    for other in others:
        other.join()
    if errors:
        raise errors[0]


def _chunks(
    rows: int, least: int, work: Callable[[int, int], None], threads: int
) -> list[tuple[Callable[[int, int], None], int, int]]:
    size = rows if threads == 1 else max(least, -(-rows // (CHUNKS * threads)))
    return [(work, start, min(start + size, rows)) for start in range(0, rows, max(1, size))]
