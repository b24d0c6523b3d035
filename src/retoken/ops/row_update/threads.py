"""Rows divided among threads: plain ones that live as long as a call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

Work = tuple[int, Callable[[int, int], None]]
"""How many rows, and what to do with rows start to stop. It must not hold Python's lock."""


def divide(works: Sequence[Work], threads: int) -> None:
    """Each thread does its share of every work; the caller is one of them. Exceptions are raised here."""

    def share(thread: int) -> None:
        for rows, work in works:
            start, stop = rows * thread // threads, rows * (thread + 1) // threads
            if start < stop:
                work(start, stop)

    if threads == 1:
        return share(0)
    with ThreadPoolExecutor(threads - 1) as pool:
        others = [pool.submit(share, thread) for thread in range(1, threads)]
        share(0)
    for other in others:
        other.result()
