"""Processes of one machine that serve the same rows: what one of them has made, all read."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch.distributed as dist

from retoken.errors import RetokenError

T = TypeVar("T")


class Neighbours(Protocol):
    """The processes of this machine that build the same model at the same time."""

    @property
    def leads(self) -> bool:
        """Whether this process acts for all."""
        ...

    def first(self, act: Callable[[], T]) -> T:
        """What `act` gives in the process that leads, in all of them, each waiting for it.

        Raises:
            RetokenError, OSError: in all of them, where it was raised there.
        """
        ...


class Alone:
    """A process with no neighbours."""

    leads = True

    def first(self, act: Callable[[], T]) -> T:
        """What `act` gives."""
        return act()


ALONE = Alone()


class Ranks:
    """The ranks of a process group, on however many machines; each machine's first one leads there."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        """Finds out who is where; all ranks of the group, which can carry objects, do so together."""
        self._group, rank = group, dist.get_rank(group)
        machines = self._told(_machine())
        self._leader = machines.index(machines[rank])
        self._leads = self._leader == rank

    @property
    def leads(self) -> bool:
        """Whether this is its machine's first rank."""
        return self._leads

    def first(self, act: Callable[[], T]) -> T:
        """What `act` gives in the machine's first rank; picklable.

        Raises:
            RetokenError, OSError: in all of the machine's, where it was raised there.
        """
        found, error = None, None
        if self._leads:
            try:
                found = act()
            except (RetokenError, OSError) as refused:
                error = refused
        found, error = self._told((found, error))[self._leader]
        if error is not None:
            raise error
        return found

    def _told(self, own: Any) -> list[Any]:
        """What every rank has to say."""
        all_of_them: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(all_of_them, own, group=self._group)
        return all_of_them


def _machine() -> tuple[str, int]:
    """What processes that see each other's files and process numbers have in common."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    return boot, Path("/proc/self/ns/pid").stat().st_ino


def shared_memory(size: int, neighbours: Neighbours) -> mmap.mmap:
    """`size` bytes of memory that all neighbours have mapped; the system takes it back with the last of them.

    Raises:
        OSError: the system grants none.
    """
    if isinstance(neighbours, Alone):
        return mmap.mmap(-1, size)
    own: list[int] = []

    def make() -> tuple[int, int]:
        own.append(os.memfd_create("retoken"))
        os.ftruncate(own[0], size)
        return os.getpid(), own[0]

    owner, number = neighbours.first(make)
    file = own[0] if own else os.open(f"/proc/{owner}/fd/{number}", os.O_RDWR)
    try:
        neighbours.first(lambda: None)  # nobody closes it before all have opened it
        return mmap.mmap(file, size)
    finally:
        os.close(file)
