"""The plan and the exchange itself, side by side: who owns what, and every byte that four ranks send."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import retoken
from retoken.parallel import Layout, open_mesh, shard_tables
from retoken.plan import Grid, Tables, traffic
from retoken.testing import DEPTH, VOCAB, WIDTH, run_distributed, tiny_model, token_ids

CASES = [
    ("retoken", "V", "early"),
    *(("mort", layout, option) for layout in ("V", "E", "VxE") for option in traffic.OPTIONS),
]
GRIDS = {
    ("V", 4): Grid(vocab_shards=4),
    ("E", 4): Grid(modulator_shards=4),
    ("VxE", 4): Grid(vocab_shards=2, modulator_shards=2),
    ("V", 2): Grid(vocab_shards=2),
    ("E", 2): Grid(modulator_shards=2),
}


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 6), st.integers(1, 9))
def test_a_grid_owns_what_a_layout_owns(vocab: int, shards: int, parts: int, modulators: int) -> None:
    grid = Grid(vocab_shards=shards, modulator_shards=parts)
    real = Layout(vocab_size=vocab, per_token=modulators, vocab_shards=shards, modulator_shards=parts)
    assert grid.size == real.ranks
    places = [real.place(rank) for rank in range(real.ranks)]
    held = [len(real.modulators(e)) for _, e in places]
    np.testing.assert_array_equal(grid.modulators_per_owner(modulators), held)
    tokens = [real.tokens(v) for v, _ in places]
    np.testing.assert_array_equal(grid.per_owner(grid.tokens_of(vocab)), tokens)


def batch_of(rank: int, unlucky: bool) -> torch.Tensor:
    """Other ids, and another number of sequences, on every rank; or one id on rank 0."""
    ids = token_ids(2 + rank, 11, seed=rank)
    return torch.full_like(ids, 8) if unlucky and rank == 0 else ids


def passes(rank, world_size, cases, emp, dtype, unlucky, ahead):
    """What this rank sent and kept in one forward and backward pass, and what its routers chose.

    `ahead`: behind a forward pass without gradient, as one that counts the routers' loads.
    """
    mesh, found = open_mesh("cpu", emp), []
    for kind, layout, option in cases:
        config = retoken.ReTokenConfig() if kind == "retoken" else retoken.MoRTConfig()
        model = retoken.attach(tiny_model("llama"), config).train()
        for module in model.retoken.layers.values():
            module.table.to(getattr(torch, dtype))
        source = shard_tables(model.retoken, mesh, layout, option)
        ids = batch_of(rank, unlucky)
        if ahead:
            with torch.no_grad():
                model.base_model(input_ids=ids, use_cache=False)
        model(input_ids=ids, labels=ids).loss.backward()
        routings = model.retoken.routings or {}
        chosen = [routing.chosen_TK for _, routing in sorted(routings.items())]
        replicas = source.combine.replica_traffic
        sent = dict(source.traffic.sent) | (dict(replicas.sent) if replicas else {})
        found.append([sent, dict(source.traffic.kept), chosen])
    return found


@pytest.mark.parametrize(
    ("emp", "dtype", "unlucky", "ahead"),
    [(4, "float32", False, False), (4, "bfloat16", True, True), (2, "bfloat16", False, False)],
)
def test_four_ranks_send_what_is_planned(emp: int, dtype: str, unlucky: bool, ahead: bool) -> None:
    cases = [case for case in CASES if (case[1], emp) in GRIDS]
    results = run_distributed(passes, 4, cases, emp, dtype, unlucky, ahead)
    ids = [batch_of(rank, unlucky).numpy() for rank in range(4)]
    for index, (kind, layout, option) in enumerate(cases):
        config = retoken.ReTokenConfig() if kind == "retoken" else retoken.MoRTConfig()
        size = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_layers": DEPTH}
        tables = Tables.of(config, **size, row_bytes=4 if dtype == "float32" else 2)
        ranks = [result[index] for result in results]
        chosen = [[each.numpy() for each in rank[2]] for rank in ranks]
        planned = traffic.of_requests(ids, tables, GRIDS[layout, emp], option, chosen)
        planned = planned.times(forward=2 if ahead else 1)
        phases = set(planned.lanes)
        for rank, (sent, kept, _) in enumerate(ranks):
            where = f"{kind}, {layout}, {option}, rank {rank}"
            assert sent == {name: planned.flow(name).sent[rank] for name in phases}, where
            own = {name for name in phases if not name.startswith("replica")}
            assert kept == {name: planned.flow(name).local[rank] for name in own}, where
