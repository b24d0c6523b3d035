"""Every byte that crosses a link is planned: on 1, 2 and 4 ranks, in every layout and option."""

from pathlib import Path

import pytest
import torch

import retoken
from retoken.parallel import Layout, open_mesh, shard_tables
from retoken.plan import Grid, Tables, traffic
from retoken.testing import DEPTH, VOCAB, WIDTH, run_distributed, tiny_model, token_ids
from retoken.train import setup
from retoken.train.config import TrainConfig
from retoken.train.step import Stepper
from retoken.train.world import World

MORT = retoken.MoRTConfig()
OPTIONS = ("early", "routed", "mixed", "sharded")
CASES = [
    ("retoken", "V", "early"),
    ("retoken", "V", "sharded"),
    *(("mort", layout, option) for layout in ("V", "E", "VxE") for option in OPTIONS),
]


def grid_of(kind, layout, size):
    """The plan's word for the division that the exchange makes among `size` owners."""
    made = Layout.make(layout, size, VOCAB, MORT.num_modulators if kind == "mort" else 1)
    return Grid(vocab_shards=made.vocab_shards, modulator_shards=made.modulator_shards)


def built(kind, layout, option, mesh):
    """A tiny attached model whose tables are divided, and who fetches their rows."""
    model = retoken.attach(tiny_model("llama"), MORT if kind == "mort" else retoken.ReTokenConfig()).train()
    distinct = option != "sharded"
    source = shard_tables(model.retoken, mesh, layout, option if distinct else "early", distinct)
    return model, source


def chosen_in(model):
    """What the routers of the last pass chose, [T, K] for each layer."""
    return [routing.chosen_TK for _, routing in sorted((model.retoken.routings or {}).items())]


def sent_by(source):
    """{phase: bytes} to other ranks, replicas included; phases without bytes left out."""
    replicas = source.combine.replica_traffic
    sent = dict(source.traffic.sent) | (dict(replicas.sent) if replicas else {})
    return {name: size for name, size in sent.items() if size}


def parts_of(rank, each=2):
    """Two micro-batches of one rank; every rank has another number of sequences."""
    return [token_ids(each + rank, 11, seed=10 * rank + part) for part in range(2)]


def planned(kind, option, grid, ids, chosen, *, forwards=1, recomputed=False):
    """{phase: bytes} of each rank for micro-batches `ids` [parts][ranks], by the plan."""
    size = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_layers": DEPTH}
    tables = Tables.of(MORT if kind == "mort" else retoken.ReTokenConfig(), **size)
    total = None
    for part, theirs in zip(ids, chosen, strict=True):
        one = traffic.of_requests(part, tables, grid, option, theirs if kind == "mort" else None)
        one = traffic.recomputed(one, option) if recomputed else one
        one = one.times(forward=forwards)
        total = one if total is None else total + one
    found = []
    for rank in range(total.ranks):
        sent = {}
        for name in total.lanes:
            size = int(total.flow(name).sent[rank])
            kind_of = name.removeprefix("recomputed ")
            sent[kind_of] = sent.get(kind_of, 0) + size
        found.append({name: size for name, size in sent.items() if size})
    return found


def compare(cases, emp, results, ids, **how):
    """Each rank's bytes, measured and planned."""
    for index, (kind, layout, option) in enumerate(cases):
        grid = grid_of(kind, layout, emp)
        parts = range(len(ids))
        chosen = [[[each.numpy() for each in rank[index][1][part]] for rank in results] for part in parts]
        want = planned(kind, option, grid, ids, chosen, **how)
        for rank, result in enumerate(results):
            assert result[index][0] == want[rank], f"{kind}, {layout}, {option}, rank {rank}"


def passes(rank, world_size, cases, emp, checkpointing, ahead):
    """Bytes sent in two micro-batches with one backward, and what was chosen in each."""
    mesh, found = open_mesh("cpu", emp), []
    for case in cases:
        model, source = built(*case, mesh)
        if checkpointing:
            setup.recompute_activations(model)
        losses, chosen = [], []
        for ids in parts_of(rank):
            if ahead:
                with torch.no_grad():
                    model.base_model(input_ids=ids, use_cache=False)
            losses.append(model(input_ids=ids, labels=ids, use_cache=False).loss)
            chosen.append(chosen_in(model))
        sum(losses).backward()
        found.append([sent_by(source), chosen])
    return found


def check(world, emp, *, checkpointing=False, ahead=False):
    """All cases; but without deduplication, owners of a modulator see only ids that chose it, which replicas
    of them exchange: the plan reckons with all ids there."""
    cases = [case for case in CASES if world == emp or case[1] == "V" or case[2] != "sharded"]
    results = run_distributed(passes, world, cases, emp, checkpointing, ahead)
    ids = [[parts_of(rank)[part].numpy() for rank in range(world)] for part in range(2)]
    compare(cases, emp, results, ids, recomputed=checkpointing, forwards=2 if ahead else 1)


@pytest.mark.parametrize(("world", "emp"), [(1, 1), (2, 2), (4, 4), (4, 2), (4, 1), (2, 1)])
def test_bytes_are_the_planned_ones(world, emp):
    check(world, emp)


@pytest.mark.parametrize(("world", "emp"), [(2, 2), (4, 2)])
def test_recomputation_asks_again_where_layers_ask(world, emp):
    check(world, emp, checkpointing=True)


def test_a_pass_without_gradient_sends_none():
    check(4, 4, ahead=True)


def windows_of(rank):
    """Two sequences with their targets."""
    return token_ids(2, 12, seed=rank)


def step(rank, world_size, cases, micro, balance_over):
    """Bytes sent in one step of the training loop, and what was chosen in its micro-batches."""
    mesh, found = open_mesh("cpu"), []
    config = TrainConfig(
        **{"out": Path("run"), "data": Path("data"), "preset": "demo", "steps": 1, "variant": "mort"},
        **{"batch_size": 2 * world_size, "micro_batch_size": micro, "context_length": 11},
        balance_over=balance_over,
    )
    for case in cases:
        model, source = built(*case, mesh)
        chosen = []
        model.register_forward_hook(
            lambda model, *_, to=chosen: to.append(chosen_in(model)) if torch.is_grad_enabled() else None
        )
        world = World(rank=rank, size=world_size)
        wrapped = world.wrap(model)
        optimizer = setup.build_optimizer_for(model, config, source)
        Stepper(model, wrapped, optimizer, config, world, source).step(windows_of(rank))
        found.append([sent_by(source), chosen])
    return found


@pytest.mark.parametrize(
    ("micro", "balance_over", "forwards"), [(1, "batch", 2), (1, "pass", 1), (0, "batch", 1)]
)
def test_the_loop_sends_what_is_planned(micro, balance_over, forwards):
    """Balance over a batch of several micro-batches counts them in a pass of its own; else there is none."""
    cases = [case for case in CASES if case[0] == "mort" and case[1] == "V"]
    results = run_distributed(step, 2, cases, micro, balance_over)
    parts = [windows_of(rank)[:, :-1].split(micro or 2) for rank in range(2)]
    ids = [[each.numpy() for each in ranks] for ranks in zip(*parts, strict=True)]
    compare(cases, 2, results, ids, forwards=forwards)
