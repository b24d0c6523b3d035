"""Memory by kind, against the bytes of the real tensors of small models."""

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import retoken
from retoken.attach.api import stack_of
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.errors import ConfigError
from retoken.optim import GroupOptions, build_optimizer, parameter_groups
from retoken.plan import Batch, Frequencies, Grid, Tables, memory
from retoken.presets import Backbone
from retoken.rows import train_by_rows
from retoken.testing import DEPTH, VOCAB, WIDTH, tiny_model

IDS = torch.tensor([[5, 9, 9, 77, 5, 130, 0, 3], [3, 3, 3, 77, 12, 9, 5, 0]])
DISTINCT = 7
# Draws from exactly those ids, so often that each is sure to be there.
FREQUENCIES = Frequencies.of_counts(np.bincount(IDS.unique().numpy(), minlength=VOCAB), VOCAB)
LONG = Batch(sequences=1, context_length=2000)
CONFIGS = [ReTokenConfig(), MoRTConfig(num_modulators=5, top_k=3), MoRTConfig(num_modulators=2, top_k=1)]


def size_of(tensors: Iterable[Tensor | None]) -> int:
    return sum(x.nbytes for x in tensors if x is not None)


def trained(config: ModulatorConfig, *, by_rows: bool = False) -> tuple[nn.Module, nn.Module]:
    """A tiny model behind one backward pass, and its modulators."""
    model = retoken.attach(tiny_model("llama"), config).train()
    stack = stack_of(model)
    if by_rows:
        train_by_rows(stack)
    model(input_ids=IDS, labels=IDS).loss.backward()
    return model, stack


def tables_of(config: ModulatorConfig, row_bytes: int = 4) -> Tables:
    return Tables.of(config, vocab_size=VOCAB, hidden_size=WIDTH, num_layers=DEPTH, row_bytes=row_bytes)


def weights_of(stack: nn.Module) -> list[nn.Parameter]:
    return [parameter for name, parameter in stack.named_parameters() if name.endswith("table.weight")]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_dense_training_holds_what_is_planned(config: ModulatorConfig) -> None:
    model, stack = trained(config)
    roles = retoken.param_groups(model)
    optimizer = build_optimizer(
        parameter_groups(model, roles, GroupOptions(lr=1e-3)), betas=(0.9, 0.95), eps=1e-8
    )
    optimizer.step()
    tables = {id(p) for p in weights_of(stack)}
    found = {}
    for kind in ("backbone", "table"):
        own = [p for p in model.parameters() if (id(p) in tables) == (kind == "table")]
        moments = [optimizer.state[p][name] for p in own for name in ("exp_avg", "exp_avg_sq")]
        found[kind] = [size_of(own), size_of(p.grad for p in own), size_of(moments)]
        # All that AdamW keeps besides is one step count for each parameter.
        everything = [value for p in own for value in optimizer.state[p].values()]
        assert size_of(everything) == size_of(moments) + 4 * len(own)

    backbone = Backbone.of(model.config)
    params = backbone.params + config.other_params(WIDTH, DEPTH)
    planned = memory.per_rank(
        backbone_params=params,
        gathered_params=0,
        tables=tables_of(config),
        grid=Grid(),
        batch=LONG,
        frequencies=FREQUENCIES,
        optimizer="adamw",
    ).device
    kinds = ("weights", "gradients", "optimizer")
    assert [planned[f"backbone {kind}"] for kind in kinds] == found["backbone"]
    assert [planned[f"table {kind}"] for kind in ("rows", "gradients", "optimizer")] == found["table"]
    assert sum(planned.values()) == 16 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_row_sparse_training_holds_what_is_planned(config: ModulatorConfig) -> None:
    _, stack = trained(config, by_rows=True)
    gradients = [weight.grad for weight in weights_of(stack)]
    assert all(grad is not None and grad.is_sparse for grad in gradients)
    real = size_of(part for g in gradients if g is not None for part in (g.values(), g.indices()))
    planned = memory.table_memory(
        tables_of(config), Grid(), LONG, FREQUENCIES, optimizer="row_adamw", option="early"
    )
    assert planned["touched-row gradients"] == real
    assert planned["table rows"] == size_of(weights_of(stack))
    assert "exchange" not in planned

    fetch = stack.source.fetch(IDS)  # pyright: ignore
    rows = [fetch.arrived(layer).rows for layer in range(DEPTH)]
    assert rows[0].shape[0] == DISTINCT
    assert planned["fetched rows"] == size_of(rows)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("grid", [Grid(vocab_shards=4), Grid(vocab_shards=3, modulator_shards=2)], ids=str)
def test_an_owner_holds_its_part(config: ModulatorConfig, grid: Grid) -> None:
    if grid.modulator_shards > config.rows_per_token:
        pytest.skip("one row a token does not divide")
    tables = tables_of(config, row_bytes=2)
    tokens = len(range(0, VOCAB, grid.vocab_shards))
    held = -(-config.rows_per_token // grid.modulator_shards)
    planned = memory.table_memory(
        tables,
        grid,
        Batch(sequences=12, context_length=2000, ranks=12),
        FREQUENCIES,
        optimizer="row_adamw",
        option="early",
    )
    assert planned["table rows"] == DEPTH * tokens * held * WIDTH * 2
    assert planned["table optimizer"] == DEPTH * tokens * (held * WIDTH * 8 + 4)
    mine = max(np.bincount(IDS.unique().numpy() % grid.vocab_shards))
    assert planned["touched-row gradients"] == DEPTH * mine * (held * WIDTH * 4 + 8)
    # Gradients that go out, of all distinct ids; and those that every rank of the group sends in.
    out = DEPTH * DISTINCT * config.rows_per_token * WIDTH * 4
    assert planned["fetched rows"] == out
    assert planned["exchange"] == out + DEPTH * grid.size * mine * held * WIDTH * 4


def test_bytes_per_table_parameter() -> None:
    tables = Tables(vocab_size=1000, width=64, layers=2, modulators=5, top_k=3, mixes=True)
    assert memory.bytes_per_parameter(tables, "adamw") == memory.DENSE_ADAMW == 16
    assert memory.bytes_per_parameter(tables, "row_adamw") == pytest.approx(12 + 4 / 320)
    assert memory.bytes_per_parameter(tables, "row_wise") == pytest.approx(4 + 4 / 64 + 4 / 320)
    decaying = memory.bytes_per_parameter(tables, "row_wise", decays=True)
    assert decaying == pytest.approx(4 + 4 / 64 + 12 / 320)


def test_fsdp_splits_and_gathers() -> None:
    found = memory.backbone_memory(1001, 4, "fsdp", gathered=300)
    assert found["backbone weights"] == found["backbone gradients"] == 4 * 251
    assert found["backbone optimizer"] == 8 * 251 and found["backbone gathered"] == 2 * 4 * 300
    assert sum(memory.backbone_memory(1001, 4, "ddp", gathered=300).values()) == 16 * 1001


def test_host_tables_leave_the_device_only_what_is_fetched() -> None:
    common = {
        "backbone_params": 100,
        "gathered_params": 0,
        "tables": tables_of(CONFIGS[1]),
        "grid": Grid(vocab_shards=2),
        "batch": Batch(sequences=2, context_length=50, ranks=2),
        "frequencies": FREQUENCIES,
    }
    here = memory.per_rank(**common)
    there = memory.per_rank(**common, location="host")
    assert {"fetched rows", "exchange"} < set(there.device)
    assert set(there.host) == {"table rows", "table optimizer", "touched-row gradients"}
    assert there.device_total + there.host_total == here.device_total and here.host_total == 0
    assert here.left(here.device_total + 5) == 5
    for option, value in (("optimizer", "sgd"), ("sharding", "zero"), ("location", "disk")):
        with pytest.raises(ConfigError, match=repr(value)):
            memory.per_rank(**common, **{option: value})
