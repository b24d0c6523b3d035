"""AdamW on touched rows is AdamW where every row is touched, and elsewhere what its documentation says."""

import copy
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from retoken.errors import ConfigError
from retoken.optim import RowAdamW, RowOrigin, RowWiseAdam, clip_by_norm_, total_norm
from retoken.testing import assert_close

V, E, D = 131, 5, 33
BETAS, EPS, STEPS = (0.9, 0.95), 1e-8, 20
OPTIMIZERS = (RowAdamW, RowWiseAdam)


def table(shape=(V, E, D), dtype=torch.float32, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return nn.Parameter(values.to(dtype))


def rows_of(parameter, ids, seed):
    """A row-sparse gradient of `parameter` at `ids`."""
    g = torch.Generator().manual_seed(seed)
    values = torch.randn((len(ids), *parameter.shape[1:]), generator=g, dtype=torch.float64)
    return sparse(parameter, ids, values.to(parameter.dtype))


def sparse(parameter, ids, values):
    index = torch.as_tensor(ids, dtype=torch.long).unsqueeze(0)
    return torch.sparse_coo_tensor(index, values, parameter.shape, is_coalesced=True, check_invariants=True)


def some_ids(step, share=0.3):
    g = torch.Generator().manual_seed(1000 + step)
    return (torch.rand(V, generator=g) < share).nonzero()[:, 0]


def train(optimizer, parameter, steps, *, share=0.3, first=0):
    for step in range(first, first + steps):
        parameter.grad = rows_of(parameter, some_ids(step, share), step)
        optimizer.step()


def bits(x):
    return x.detach().view({8: torch.int64, 4: torch.int32, 2: torch.int16}[x.element_size()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("correction", ["row", "global"])
@pytest.mark.parametrize("max_norm", [math.inf, 1.0])
def test_equals_dense_adamw_where_every_step_touches_every_row(dtype, decay, correction, max_norm):
    """Rounding: a handful of operations a step on either side, which add up over the steps."""
    ours, theirs = table(dtype=dtype), table(dtype=dtype)
    options = {"betas": BETAS, "eps": EPS, "weight_decay": decay}
    row = RowAdamW([ours], lr=1e-2, bias_correction=correction, **options)
    dense = torch.optim.AdamW([theirs], lr=1e-2, **options)
    for step in range(STEPS):
        for optimizer in (row, dense):
            optimizer.param_groups[0]["lr"] = 1e-2 * (step + 1) / STEPS
        ours.grad = rows_of(ours, torch.arange(V), step)
        theirs.grad = ours.grad.to_dense()
        clip_by_norm_([ours], max_norm, total_norm([ours]))
        if max_norm < math.inf:
            nn.utils.clip_grad_norm_([theirs], max_norm)
        row.step()
        dense.step()
    assert_close("weight", theirs, ours, units=4 * STEPS)
    for name in ("exp_avg", "exp_avg_sq"):
        assert_close(name, dense.state[theirs][name], row.state[ours][name], units=4 * STEPS)
    assert row.state[ours]["step"] == dense.state[theirs]["step"] == STEPS


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_untouched_rows_and_their_state_keep_their_bits(make, decay):
    parameter = table()
    optimizer = make([parameter], weight_decay=decay)
    train(optimizer, parameter, 3)
    before = {name: value.clone() for name, value in optimizer.state[parameter].items() if value.dim()}
    weight = parameter.detach().clone()
    ids = some_ids(7)
    others = torch.ones(V, dtype=torch.bool)
    others[ids] = False
    for name, value in before.items():
        if name in ("exp_avg", "exp_avg_sq", "mean_sq"):
            value[others] = math.nan
        optimizer.state[parameter][name].copy_(value)
    parameter.grad = rows_of(parameter, ids, 7)
    optimizer.step()
    assert torch.equal(bits(parameter)[others], bits(weight)[others])
    assert not torch.equal(parameter[ids], weight[ids]) and parameter.isfinite().all()
    for name, value in before.items():
        assert torch.equal(bits(optimizer.state[parameter][name])[others], bits(value)[others]), name


@settings(max_examples=15, deadline=None)
@given(
    touched=st.lists(st.sets(st.integers(0, 6)), min_size=1, max_size=12), decay=st.sampled_from([0.0, 0.2])
)
def test_every_row_has_an_adam_whose_clock_runs_while_it_is_touched(touched, decay):
    """The oracle: a torch AdamW for each row, stepped with its gradients alone; decay runs for all."""
    ours = table((7, D), torch.float64)
    row = RowAdamW([ours], lr=1e-2, betas=BETAS, weight_decay=decay)
    alone = [nn.Parameter(ours[i].detach().clone()) for i in range(7)]
    adams = [torch.optim.AdamW([p], lr=1e-2, betas=BETAS, weight_decay=decay) for p in alone]
    for step, ids in enumerate(touched):
        ours.grad = rows_of(ours, sorted(ids), step)
        row.step()
        for place, i in enumerate(sorted(ids)):
            alone[i].grad = ours.grad._values()[place].clone()
            adams[i].step()
        for i in set(range(7)) - ids:
            alone[i].data.mul_(1 - 1e-2 * decay)
    row.settle(ours)
    assert_close("rows", torch.stack(list(alone)), ours, units=64)


@pytest.mark.parametrize(("correction", "moves"), [("row", 1.0), ("global", 0.1 / math.sqrt(0.05))])
def test_how_far_a_late_first_touch_moves(correction, moves):
    parameter = table((3, D), torch.float64)
    optimizer = RowAdamW([parameter], lr=1e-3, betas=BETAS, bias_correction=correction)
    for step in range(1000):
        parameter.grad = rows_of(parameter, [0], step)
        optimizer.step()
    before = parameter[1].detach().clone()
    parameter.grad = rows_of(parameter, [1], 0)
    optimizer.step()
    step = (parameter[1] - before).detach().abs() / 1e-3
    assert step.sub(moves).abs().max() < 1e-4


def test_decay_of_untouched_rows_is_exact_when_they_are_read():
    """Against dense AdamW with a zero gradient for rows that no step names: that is decay alone."""
    ours, theirs = table(dtype=torch.float64), table(dtype=torch.float64)
    start = ours.detach().clone()
    row = RowAdamW([ours], weight_decay=0.3, betas=BETAS)
    dense = torch.optim.AdamW([theirs], weight_decay=0.3, betas=BETAS)
    for step in range(9):
        for optimizer in (row, dense):
            optimizer.param_groups[0]["lr"] = 1e-2 / (step + 1)
        ids = some_ids(step, 0.1)
        ours.grad = rows_of(ours, ids, step)
        theirs.grad = ours.grad.to_dense()
        row.step()
        dense.step()
    idle = row.state[ours]["touches"] == 0
    assert 20 < idle.sum() < V
    assert torch.equal(ours[idle], start[idle])
    read = idle.nonzero()[:10, 0]
    row.settle(ours, read)
    assert_close("read rows", theirs[read], ours[read], units=16)
    rest = idle.nonzero()[10:, 0]
    assert torch.equal(ours[rest], start[rest])
    row.settle_all()
    assert_close("all idle rows", theirs[idle], ours[idle], units=16)
    settled = ours.detach().clone()
    row.settle_all()
    row.settle(ours, read)
    assert torch.equal(ours, settled)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_reading_now_or_later_gives_the_same(make):
    """Rows settled before each read, only before a gradient, or at the end by all: one result."""
    results = []
    for when in ("always", "touched", "end"):
        parameter = table(dtype=torch.float64)
        optimizer = make([parameter], weight_decay=0.3)
        for step in range(9):
            ids = some_ids(step, 0.2)
            if when != "end":
                optimizer.settle(parameter, ids if when == "touched" else None)
            parameter.grad = rows_of(parameter, ids, step)
            optimizer.step()
        optimizer.settle(parameter)
        results.append(parameter.detach())
    assert_close("settled when touched", results[0], results[1], units=64)
    assert_close("settled at the end", results[0], results[2], units=64)


def test_without_decay_nothing_is_kept_for_it_and_settling_changes_nothing():
    parameter = table()
    optimizer = RowAdamW([parameter])
    optimizer.settle(parameter)
    train(optimizer, parameter, 2)
    assert set(optimizer.state[parameter]) == {"step", "exp_avg", "exp_avg_sq", "touches"}
    before = parameter.detach().clone()
    optimizer.settle_all()
    assert torch.equal(parameter, before)


def test_an_empty_gradient_counts_the_step_and_decays():
    parameter = table((3, 2))
    start = parameter.detach().clone()
    optimizer = RowAdamW([parameter], lr=0.1, weight_decay=0.5)
    parameter.grad = rows_of(parameter, [], 0)
    optimizer.step()
    optimizer.step()
    optimizer.settle(parameter)
    assert optimizer.state[parameter]["step"] == 2
    assert_close("decayed", start * 0.95**2, parameter)


def test_a_parameter_without_gradient_is_left_out():
    parameter = table()
    optimizer = RowAdamW([parameter], weight_decay=0.5)
    optimizer.step()
    assert not optimizer.state.get(parameter)


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_round_trip_continues_bit_for_bit(make, dtype):
    options = {"lr": 1e-2, "weight_decay": 0.1, "seed": 3}
    whole = table(dtype=dtype)
    optimizer = make([whole], **options)
    train(optimizer, whole, 4)
    resumed = nn.Parameter(whole.detach().clone())
    other = make([resumed], **{**options, "lr": 1.0})
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for name, value in optimizer.state[whole].items():
        assert other.state[resumed][name].dtype == value.dtype, name
    assert other.param_groups[0]["lr"] == 1e-2
    train(optimizer, whole, 4, first=4)
    train(other, resumed, 4, first=4)
    assert torch.equal(whole, resumed)
    for name, value in optimizer.state[whole].items():
        assert torch.equal(other.state[resumed][name], value), name


def test_state_holds_tensors_only_and_its_bytes_are_the_documented_ones():
    for shape, make, per_token in (
        ((V, D), RowAdamW, 8 * D + 4),
        ((V, E, D), RowAdamW, 8 * E * D + 4),
        ((V, D), RowWiseAdam, 4 + 4),
        ((V, E, D), RowWiseAdam, 4 * E + 4),
    ):
        for dtype in (torch.float32, torch.bfloat16):
            parameter = table(shape, dtype)
            optimizer = make([parameter])
            train(optimizer, parameter, 1)
            state = optimizer.state[parameter]
            assert all(isinstance(value, torch.Tensor) for value in state.values())
            assert sum(value.nbytes for value in state.values()) - state["step"].nbytes == V * per_token


def test_a_dense_optimizer_s_state_is_taken_over():
    """Dense AdamW has touched every row at every step."""
    parameter = table()
    dense = torch.optim.AdamW([parameter], betas=BETAS)
    parameter.grad = torch.ones_like(parameter)
    for _ in range(3):
        dense.step()
    row = RowAdamW([parameter], betas=BETAS)
    row.load_state_dict(dense.state_dict())
    train(row, parameter, 1)
    assert row.state[parameter]["touches"].tolist() == [
        4 if i in set(some_ids(0).tolist()) else 3 for i in range(V)
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_state_takes_memory_for_touched_rows_only():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    first = table()
    train(RowAdamW([first]), first, 1)  # what a first step loads, be it compiled or found in a cache
    parameter = nn.Parameter(torch.zeros(1, D).expand(1 << 20, D).contiguous())
    optimizer = RowAdamW([parameter])
    parameter.grad = rows_of(parameter, list(range(50)), 0)
    before = resident()
    optimizer.step()
    assert optimizer.state[parameter]["exp_avg"].nbytes == (1 << 20) * D * 4
    assert resident() - before < (1 << 20) * D


def test_bfloat16_rows_move_by_steps_too_small_to_round_to():
    """Where the nearest bf16 is always the old one, expectations still move: 400 steps of 1e-4 from 1."""
    parameter = nn.Parameter(torch.ones(V, 64, dtype=torch.bfloat16))
    optimizer = RowAdamW([parameter], lr=1e-4, betas=BETAS)
    for _ in range(400):
        parameter.grad = sparse(parameter, range(V), torch.ones(V, 64, dtype=torch.bfloat16))
        optimizer.step()
    # Each step is a draw with a standard deviation of at most half a bf16 spacing below 1 (2^-8).
    spread = 2**-9 * math.sqrt(400 / (V * 64))
    assert abs(parameter.double().mean().item() - (1 - 400 * 1e-4)) < 5 * spread


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_bfloat16_is_within_its_rounding_of_the_float32_step(make):
    narrow = table(dtype=torch.bfloat16)
    wide = nn.Parameter(narrow.detach().float())
    ids = some_ids(0)
    narrow.grad = rows_of(narrow, ids, 0)
    wide.grad = sparse(wide, ids, narrow.grad._values().float())
    for parameter in (narrow, wide):
        make([parameter], lr=0.1).step()
    error = (narrow.float() - wide).abs()
    assert (error <= 2**-7 * wide.abs().clamp(min=2**-126)).all()
    assert (error[ids] > 2**-9 * wide[ids].abs()).any()


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_bfloat16_depends_on_the_seed_and_on_nothing_else(make):
    found = []
    for seed in (0, 0, 1):
        parameter = table(dtype=torch.bfloat16)
        train(make([parameter], lr=1e-3, weight_decay=0.1, seed=seed), parameter, 3)
        found.append(parameter.detach())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_a_table_become_what_the_whole_becomes(make, dtype):
    """Token x with part x % 3, modulators in two ranges: bit for bit, stochastic rounding included."""
    options = {"lr": 1e-2, "weight_decay": 0.1, "seed": 5}
    whole = table(dtype=dtype)
    train(make([whole], **options), whole, 4)
    start = table(dtype=dtype).detach()
    for v in range(3):
        for modulators in (slice(0, 3), slice(3, 5)):
            part = nn.Parameter(start[v::3, modulators].clone())
            origin = RowOrigin(first=v, stride=3, column=modulators.start * D)
            optimizer = make([part], origins={part: origin}, **options)
            for step in range(4):
                ids = some_ids(step)
                mine = ids % 3 == v
                values = rows_of(whole, ids, step)._values()[mine][:, modulators]
                part.grad = sparse(part, ids[mine] // 3, values)
                optimizer.step()
            assert torch.equal(part, whole[v::3, modulators])


def test_closure_gives_the_loss_with_gradients_on():
    parameter = table()

    def closure():
        assert torch.is_grad_enabled()
        parameter.grad = rows_of(parameter, [1], 0)
        return 3.5

    assert RowAdamW([parameter]).step(closure) == 3.5


@pytest.mark.parametrize(
    ("gradient", "message"),
    [
        (lambda p: torch.zeros_like(p), "is dense"),
        (lambda p: twice(p), "is not coalesced"),
        (lambda p: torch.zeros_like(p).to_sparse(2), "2 sparse dimensions"),
    ],
)
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_other_gradients_are_refused_by_name_and_nothing_moves(make, gradient, message):
    first, second = table(), table()
    optimizer = make([{"params": [first, second], "param_names": ["first.table", "second.table"]}])
    first.grad, second.grad = rows_of(first, [1], 0), gradient(second)
    before = first.detach().clone()
    with pytest.raises(ConfigError, match=f"the gradient of second.table .*{message}.*accepted: coalesced"):
        optimizer.step()
    assert torch.equal(first, before) and not optimizer.state.get(first)


def twice(parameter):
    index = torch.tensor([[1, 1]])
    values = torch.ones(2, *parameter.shape[1:])
    return torch.sparse_coo_tensor(index, values, parameter.shape, check_invariants=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"eps": -1e-8}, "eps is"),
        ({"weight_decay": -0.1}, "weight_decay is"),
        ({"bias_correction": "none"}, "bias_correction is 'none'; accepted: row, global"),
        ({"betas": (0.9, 1.0)}, "betas are"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        RowAdamW([table()], **options)


def test_decay_of_a_whole_row_in_one_step_is_refused():
    parameter = table()
    parameter.grad = rows_of(parameter, [1], 0)
    with pytest.raises(ConfigError, match="lr \\* weight_decay is 1; accepted: below 1"):
        RowAdamW([parameter], lr=10.0, weight_decay=0.1).step()


@pytest.mark.parametrize("parameter", [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3, 2).half())])
def test_what_is_no_table_is_refused(parameter):
    with pytest.raises(ConfigError, match="accepted for updates by rows"):
        RowAdamW([parameter])


def test_state_of_other_groups_is_refused():
    one, two = RowAdamW([table()]), RowAdamW([table(), table()])
    with pytest.raises(ConfigError, match=r"groups of \[1\] parameters; accepted: \[2\]"):
        two.load_state_dict(one.state_dict())
