"""Processes of one machine keep one copy of the rows that live in host memory."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import retoken
from retoken.attach.absent import AbsentTable
from retoken.errors import ConfigError
from retoken.serving.neighbours import ALONE, Ranks, shared_memory
from retoken.serving.place import Asked, Seat, house
from retoken.serving.reader import FolderReader
from retoken.serving.tiers import MemoryTier
from retoken.testing import run_distributed, tiny_model, token_ids


def one_memory(rank, world_size):
    ranks = Ranks(dist.group.WORLD)
    memory = shared_memory(4096, ranks)
    if rank == 1:
        memory[7] = 42
    dist.barrier()
    return ranks.leads, memory[7]


def test_all_see_what_one_writes():
    assert run_distributed(one_memory, 3) == [(True, 42), (False, 42), (False, 42)]


def refused_by_the_first(rank, world_size):
    ranks, asked = Ranks(dist.group.WORLD), []

    def act():
        asked.append(rank)
        raise ConfigError("budget is 0; accepted: more")

    try:
        ranks.first(act)
    except ConfigError as error:
        return asked, str(error)


def test_what_is_refused_once_is_refused_everywhere():
    said = "budget is 0; accepted: more"
    assert run_distributed(refused_by_the_first, 2) == [([0], said), ([], said)]


def logits_of_the_folder(rank, world_size, folder, path, tables, budget):
    ranks, model = Ranks(dist.group.WORLD), retoken.load(folder)
    stack, reader = model.retoken, FolderReader(Path(folder))
    for module in stack.layers.values():
        module.table = AbsentTable(tuple(module.table.weight.shape), 1.0, None, None)
    counts = torch.arange(reader.shape()[0])
    asked = Asked.of(tables, budget, path=path, rows=None, counts=counts, verify=False)
    house(Seat(stack, model.dtype, model.device, ranks), reader, asked)
    hosts = [tier for tier in stack.source._tiers if isinstance(tier, MemoryTier)]
    with torch.no_grad():
        return model(token_ids(2, 9)).logits, [tier.elsewhere for tier in hosts]


@pytest.mark.parametrize("tables", ["host", "disk", "cascade"])
def test_one_copy_gives_every_process_the_resident_models_logits(tables, tmp_path):
    torch.manual_seed(0)
    model = retoken.attach(tiny_model("llama"), retoken.MoRTConfig(num_modulators=3, top_k=2)).eval()
    model.save_pretrained(tmp_path / "model")
    with torch.no_grad():
        wanted = model(token_ids(2, 9)).logits
    path = None if tables == "host" else str(tmp_path / "rows.safetensors")
    where, budget = ("disk", {"host": 20_000}) if tables == "cascade" else (tables, None)
    found = run_distributed(logits_of_the_folder, 2, str(tmp_path / "model"), path, where, budget)
    assert all(torch.equal(logits, wanted) for logits, _ in found)
    assert [elsewhere for _, elsewhere in found] == ([[], []] if tables == "disk" else [[False], [True]])


def test_a_process_on_its_own():
    memory = shared_memory(64, ALONE)
    assert len(memory) == 64 and ALONE.leads and ALONE.first(lambda: 3) == 3
