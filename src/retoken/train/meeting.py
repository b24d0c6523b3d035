"""Processes that torchrun started anew find each other, not the ones that died.

torchrun keeps one key-value store over its restarts (PyTorch 2.13), so addresses of the dead are still in it;
gloo then waits for them without end, whatever the timeout. Here the processes of one start agree on a name
that no earlier one can have left, and keep their keys under it.
"""

from __future__ import annotations

import os
import time
import uuid
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from retoken.errors import TrainingError

_PAUSE = 0.05
_START = timedelta(minutes=10)
"""How long to wait at least: hosts come up at different speeds."""


def has_old_store() -> bool:
    """Whether the process group would be made through a store that outlives its processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def meet_again(timeout: timedelta) -> tuple[Store, int, int]:
    """The part of torchrun's store that is this start's alone, this process's rank, and the number of all.

    Raises:
        TrainingError: Not all of them came in time.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = max(timeout, _START)
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(host, port, size, is_master=False, timeout=timeout)  # pyright: ignore
    return PrefixStore(agree(store, rank, size, timeout), store), rank, size


def agree(store: Store, rank: int, size: int, timeout: timedelta) -> str:
    """A name that the processes of this start have in common and no others; in all of them.

    The others tell the first a token each. What the first finds may be a dead process's token, so it answers
    every new one, until each of the others has confirmed an answer.
    """
    token = uuid.uuid4().hex
    try:
        if rank == 0:
            _answer(store, size, token, time.monotonic() + timeout.total_seconds())
            return token
        store.set(f"retoken/here/{rank}", token)
        store.wait([f"retoken/name/{token}"], timeout)
        name = store.get(f"retoken/name/{token}").decode()
        store.set(f"retoken/heard/{name}/{rank}", "")
        return name
    except (dist.DistError, TimeoutError) as error:
        seconds = timeout.total_seconds()
        raise TrainingError(
            f"process {rank} of {size}: not all processes were there within {seconds:g} s"
        ) from error


def _answer(store: Store, size: int, name: str, end: float) -> None:
    answered = dict.fromkeys(range(1, size), b"")
    while answered:
        for rank, before in list(answered.items()):
            if store.check([f"retoken/heard/{name}/{rank}"]):
                del answered[rank]
            elif store.check([f"retoken/here/{rank}"]):
                token = store.get(f"retoken/here/{rank}")
                if token != before:
                    answered[rank] = token
                    store.set(f"retoken/name/{token.decode()}", name)
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(_PAUSE if answered else 0)
