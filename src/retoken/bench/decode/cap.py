"""A limit on the memory of this process, page cache included, through the memory cgroup (version 1)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from retoken.errors import ConfigError

ROOT = Path("/sys/fs/cgroup/memory")
MARGIN = 8 << 20
"""Bytes of a limit for what is neither anonymous nor the file's: page tables, code that was not yet read."""


class Cap:
    """The group this process is in."""

    def __init__(self, group: Path) -> None:
        self.group = group

    def limit(self, size: int) -> None:
        """No more than `size` bytes; what exceeds it is given back first."""
        (self.group / "memory.limit_in_bytes").write_text(str(size))

    def peak_anonymous(self, act: Callable[[], object]) -> int:
        """Most bytes that could not be given back while `act` was under way, looked at every few ms."""
        seen, over = [self.anonymous], threading.Event()

        def watch() -> None:
            while not over.wait(0.002):
                seen.append(self.anonymous)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            act()
        finally:
            over.set()
            watcher.join()
        return max(*seen, self.anonymous)

    @property
    def usage(self) -> int:
        """Bytes that count now, page cache included."""
        return int((self.group / "memory.usage_in_bytes").read_text())

    @property
    def anonymous(self) -> int:
        """Bytes that cannot be given back."""
        lines = (self.group / "memory.stat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("rss "))


@contextmanager
def capped() -> Iterator[Cap]:
    """Within, this process is in a memory group of its own; what it allocates from now on counts there.

    Raises:
        ConfigError: no such group can be made here.
    """
    group = ROOT / f"retoken-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as error:
        raise ConfigError(
            f"memory cap: {group} cannot be used ({error}); accepted: cgroup v1, as root"
        ) from None
    try:
        yield Cap(group)
    finally:
        (group / "memory.limit_in_bytes").write_text("-1")
        (ROOT / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()
