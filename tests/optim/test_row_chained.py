"""One optimizer to the loop, several inside; and one norm over all gradients."""

import copy

import pytest
import torch
from torch import nn

from retoken.checkpoint.state import optimizer_tensors
from retoken.errors import ConfigError
from retoken.optim import (
    ChainedOptimizer,
    RowAdamW,
    RowWiseAdam,
    build_optimizer,
    clip_by_norm_,
    set_lr,
    total_norm,
)
from retoken.testing import assert_close

V, D = 131, 33
OPTIONS = {"betas": (0.9, 0.95), "eps": 1e-8}


class Tiny(nn.Module):
    """A matrix, a table, and a vector: groups on either side of the tables'."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(D, D, generator=g))
        self.table = nn.Parameter(torch.randn(V, D, generator=g).to(dtype))
        self.scale = nn.Parameter(torch.randn(D, generator=g))

    def groups(self, decay=0.1):
        parts = {"matrices": ("matrix", decay), "tables": ("table", decay), "scales": ("scale", 0.0)}
        return [
            {
                "name": name,
                "params": [getattr(self, key)],
                "param_names": [key],
                "peak_lr": 1e-2,
                "weight_decay": weight_decay,
            }
            for name, (key, weight_decay) in parts.items()
        ]

    def grads(self, step, ids=None, *, sparse=True):
        g = torch.Generator().manual_seed(step)
        for parameter in (self.matrix, self.scale):
            parameter.grad = torch.randn(parameter.shape, generator=g)
        ids = torch.arange(V) if ids is None else ids
        values = torch.randn(V, D, generator=g)[ids].to(self.table.dtype)
        grad = torch.sparse_coo_tensor(
            ids.unsqueeze(0), values, (V, D), is_coalesced=True, check_invariants=True
        )
        self.table.grad = grad if sparse else grad.to_dense()


def train(model, optimizer, steps, *, sparse=True, first=0, ids=None):
    for step in range(first, first + steps):
        set_lr(optimizer, (step + 1) / 10)
        model.grads(step, ids, sparse=sparse)
        clip_by_norm_(model.parameters(), 1.0, total_norm(model.parameters()))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def build(model, tables="row_adamw", **options):
    return build_optimizer(model.groups(**options), **OPTIONS, tables=tables)


def test_dense_tables_are_torch_s_adamw_and_nothing_else():
    assert type(build(Tiny(), "adamw")) is torch.optim.AdamW
    without = [group for group in Tiny().groups() if group["name"] != "tables"]
    assert type(build_optimizer(without, **OPTIONS, tables="row_adamw")) is torch.optim.AdamW


@pytest.mark.parametrize(("tables", "kind"), [("row_adamw", RowAdamW), ("row_wise", RowWiseAdam)])
def test_tables_get_their_optimizer_and_the_rest_adamw(tables, kind):
    optimizer = build(Tiny(), tables)
    assert isinstance(optimizer, ChainedOptimizer)
    assert [type(part) for part in optimizer.parts] == [torch.optim.AdamW, kind]
    assert [group["name"] for group in optimizer.param_groups] == ["matrices", "scales", "tables"]
    assert [group["name"] for group in optimizer.parts[1].param_groups] == ["tables"]


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match="tables is 'sgd'; accepted: adamw, row_adamw, row_wise"):
        build(Tiny(), "sgd")


def test_all_rows_touched_is_dense_adamw_through_clipping_schedule_and_decay():
    ours, theirs = Tiny(), Tiny()
    train(ours, build(ours), 10)
    train(theirs, build(theirs, "adamw"), 10, sparse=False)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(name, other, one, units=40)


def test_only_tables_alone_can_be_chained():
    model = Tiny()
    optimizer = build_optimizer(model.groups()[1:2], **OPTIONS, tables="row_adamw")
    train(model, optimizer, 2)
    assert list(optimizer.state) == [model.table]


@pytest.mark.parametrize("tables", ["row_adamw", "row_wise"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_dict_round_trip_continues_bit_for_bit(tables, dtype):
    model = Tiny(dtype)
    optimizer = build(model, tables)
    ids = torch.tensor([3, 5, 90])
    train(model, optimizer, 3, ids=ids)
    other = copy.deepcopy(model)
    resumed = build(other, tables)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.param_groups[2] is resumed.parts[1].param_groups[0]
    assert all(part.state is resumed.state for part in resumed.parts)
    for chain, whose in ((optimizer, model), (resumed, other)):
        train(whose, chain, 3, first=3, ids=ids)
        chain.settle_all()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_state_dict_survives_a_safe_load(tmp_path):
    model = Tiny(torch.bfloat16)
    optimizer = build(model)
    train(model, optimizer, 1)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = build(Tiny(torch.bfloat16))
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    state = next(s for p, s in resumed.state.items() if p.dtype == torch.bfloat16)
    assert state["exp_avg"].dtype == torch.float32 and state["touches"].dtype == torch.int32


def test_a_checkpoint_finds_every_part_s_state_by_name():
    model = Tiny()
    optimizer = build(model)
    train(model, optimizer, 2)
    found = {live.key: live.tensor for live in optimizer_tensors(optimizer)}
    names = ("matrix", "scale", "table")
    expected = {f"optimizer.{name}.{what}" for name in names for what in ("step", "exp_avg", "exp_avg_sq")}
    own = {f"optimizer.table.{what}" for what in ("touches", "settled", "log_decay")}
    assert set(found) == expected | own
    assert torch.equal(found["optimizer.table.exp_avg"], optimizer.parts[1].state[model.table]["exp_avg"])


def test_state_set_from_outside_reaches_the_part():
    """As a resumed run does it: `optimizer.state[parameter] = state`."""
    model = Tiny()
    optimizer = build(model)
    train(model, optimizer, 1)
    states = {p: {k: v.clone() for k, v in s.items()} for p, s in optimizer.state.items()}
    fresh = build(model)
    for parameter, state in states.items():
        fresh.state[parameter] = state
    train(model, fresh, 1)
    assert fresh.state[model.table]["touches"].unique().tolist() == [2]
    assert fresh.state[model.matrix]["step"] == 2


def test_another_grouping_is_refused():
    model = Tiny()
    with pytest.raises(ConfigError, match=r"groups of \[1, 1\] parameters; accepted: \[1, 1, 1\]"):
        build(model).load_state_dict(build_optimizer(model.groups()[:2], **OPTIONS).state_dict())


def test_settling_reaches_the_tables():
    model = Tiny()
    optimizer = build(model, decay=0.5)
    start = model.table.detach().clone()
    train(model, optimizer, 2, ids=torch.tensor([0]))
    factor = (1 - 1e-3 * 0.5) * (1 - 2e-3 * 0.5)
    optimizer.settle(model.table, torch.tensor([7]))
    assert_close("settled row", start[7] * factor, model.table[7])
    assert torch.equal(model.table[8], start[8])
    optimizer.settle_all()
    assert_close("all rows", start[1:] * factor, model.table[1:])


def test_hooks_and_closures_see_one_step():
    model = Tiny()
    optimizer = build(model)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))

    def closure():
        model.grads(0)
        return 2.0

    assert optimizer.step(closure) == 2.0 and seen == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_clipping_count_rows_exactly(dtype):
    ours, theirs = Tiny(dtype), Tiny(dtype)
    ours.grads(0, torch.tensor([2, 3, 130]))
    theirs.grads(0, torch.tensor([2, 3, 130]), sparse=False)
    ours.table.grad._values().mul_(100)
    theirs.table.grad.mul_(100)
    everything = torch.cat([p.grad.flatten().double() for p in theirs.parameters()])
    norm = total_norm(ours.parameters())
    assert norm.dtype == torch.float32
    assert_close("norm", everything.norm(), norm, units=8, rounding=torch.float32)
    clip_by_norm_(ours.parameters(), 1.0, norm)
    assert ours.table.grad.is_coalesced() and ours.table.grad._nnz() == 3
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        dense = one.grad.to_dense() if one.grad.is_sparse else one.grad
        units = 8 if one.dtype == torch.float32 else 2
        assert_close(name, other.grad.double() / everything.norm(), dense, units=units)


def test_a_norm_within_the_limit_changes_no_bit():
    model = Tiny()
    model.grads(0)
    before = [p.grad.clone() for p in model.parameters()]
    clip_by_norm_(model.parameters(), 1e9, total_norm(model.parameters()))
    for parameter, grad in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter.grad.to_dense(), grad.to_dense())


def test_squares_of_divided_tables_are_summed_once_and_the_rest_is_not():
    model = Tiny()
    model.grads(0)
    calls = []

    def three_ranks(square):
        calls.append(square.item())
        return 3 * square

    rest = model.matrix.grad.square().sum() + model.scale.grad.square().sum()
    expected = (rest + 3 * model.table.grad._values().square().sum()).sqrt()
    assert_close("norm", expected, total_norm(model.parameters(), three_ranks))
    model.table.grad = None
    assert_close("a rank without rows", rest.sqrt(), total_norm(model.parameters(), three_ranks))
    assert len(calls) == 2 and calls[1] == 0
