"""Rows divided among threads: plain ones that live as long as a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Thread

Work = tuple[int, int, Callable[[int, int], None]]
"""How many rows, how many at a time, and what to do with rows start to stop, which drops Python's lock."""


def divide(works: Sequence[Work], threads: int) -> None:
    """Threads take chunks until none is left; the caller is one of them. The first exception is raised here.

    A thread that starts late, or has to share its core, takes fewer: nobody waits for a part it was given.
    There are at most half as many threads as chunks.
    """
    chunks = [
        (work, start, min(start + size, rows)) for rows, size, work in works for start in range(0, rows, size)
    ]
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
