"""How much memory this process may still take: of the machine, and of the groups that limit it (Linux)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

LIMITS = {"memory.limit_in_bytes": ("total_rss", "total_shmem"), "memory.max": ("anon", "shmem")}
"""A group's limit, by version 1 or 2, and what of its `memory.stat` cannot be given back."""


def available_bytes(proc: Path = Path("/proc"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that can be taken; None: this system does not tell.

    Args:
        proc, root: where the system tells.
    """
    found = [_left(folder) for folder in _groups(proc, root)]
    found.append(_of_machine(proc))
    return min((size for size in found if size is not None), default=None)


def _of_machine(proc: Path) -> int | None:
    lines = _lines(proc / "meminfo")
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def _groups(proc: Path, root: Path) -> Iterator[Path]:
    """The folders of the groups this process is in, each with those above it."""
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        inner = top / path.lstrip("/")
        yield inner
        yield from (folder for folder in inner.parents if folder.is_relative_to(top))


def _left(folder: Path) -> int | None:
    for name, kept in LIMITS.items():
        limit = "".join(_lines(folder / name)).strip()
        if limit.isdigit():
            sizes = dict(line.split() for line in _lines(folder / "memory.stat"))
            return max(int(limit) - sum(int(sizes.get(key, 0)) for key in kept), 0)
    return None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
