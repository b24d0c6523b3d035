"""A process that waits for another in vain says so, in place of what a transport says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from retoken.checkpoint import newest_path
from retoken.errors import TrainingError
from retoken.train.folder import RunFolder
from retoken.train.world import World

_SILENT = re.compile(r"[Tt]imed out.*?(\d+) ?ms|[Tt]imed? ?out")


@contextmanager
def told_of_lost_processes(world: World, folder: RunFolder) -> Iterator[None]:
    """Around all that the processes of a run do together.

    Raises:
        TrainingError: Another process is gone, or does not answer; names the last good checkpoint.
    """
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not _is_of_transport(error):
            raise
        good = newest_path(folder.checkpoints) or "none"
        raise TrainingError(
            f"process {world.rank} of {world.size}: another one {_what_happened(str(error))}; last good "
            f"checkpoint: {good}; the same command, started on all of them, goes on from there"
        ) from error


def _is_of_transport(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def _what_happened(message: str) -> str:
    silent = _SILENT.search(message)
    if silent is None:
        return "is gone (its connection closed)"
    return f"did not answer within {int(silent.group(1)) / 1000:g} s" if silent.group(1) else "did not answer"
