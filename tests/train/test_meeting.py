"""The processes of one start find each other in a store in which those of earlier ones left their keys."""

import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from retoken.errors import TrainingError
from retoken.train.meeting import agree

SOON = timedelta(seconds=20)


def start(store: dist.Store, delays: list[float]) -> list[str]:
    """The name each process of one start comes by; each comes after its delay."""
    found = [""] * len(delays)

    def come(rank: int) -> None:
        time.sleep(delays[rank])
        found[rank] = agree(store, rank, len(delays), SOON)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(len(delays))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("delays", [[0, 0, 0], [0.3, 0, 0], [0, 0.3, 0.1]])
def test_each_start_has_a_name_of_its_own_though_the_store_is_full_of_old_ones(delays):
    store = dist.HashStore()
    names = [start(store, delays) for _ in range(3)]
    for found in names:
        assert len(set(found)) == 1 and found[0]
    assert len({found[0] for found in names}) == 3


def test_a_start_in_which_one_died_while_it_met_does_not_disturb_the_next():
    store = dist.HashStore()
    # Rank 1 came and died before rank 0 answered; rank 2 was answered by a rank 0 that died.
    store.set("retoken/here/1", "dead")
    store.set("retoken/here/2", "answered")
    store.set("retoken/name/answered", "old")
    found = start(store, [0, 0.2, 0.1])
    assert len(set(found)) == 1 and found[0] not in ("old", "")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_waits_in_vain_says_so(rank):
    with pytest.raises(TrainingError, match=f"process {rank} of 2: not all processes were there"):
        agree(dist.HashStore(), rank, 2, timedelta(seconds=0.3))
