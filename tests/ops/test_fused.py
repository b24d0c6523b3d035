"""The kernels for inference on a CPU against the paper's equations: odd sizes, row types, guarded memory."""

import itertools
import math
import sys

import pytest
import torch

from retoken import ops
from retoken.ops import fused, naive
from retoken.ops.fused import room
from retoken.ops.norm import norm_gain
from retoken.ops.quantize import dequantize, quantize
from retoken.testing import assert_close

V, EPS, DEPTH = 17, 1e-6, 3
WIDTHS = (1, 7, 16, 33, 100)
COUNTS = (1, 5, 90)
TYPES = ("float32", "bfloat16", "int8", "float8_e4m3")
STATES = (torch.float32, torch.bfloat16)
GUARD = 64


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def _draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _ids(count):
    return torch.randint(0, V, (count,), generator=torch.Generator().manual_seed(count))


def _guarded(x):
    """The same numbers with NaN before and behind them in memory."""
    around = torch.full((x.numel() + 2 * GUARD,), math.nan).to(x.dtype)
    inside = around[GUARD : GUARD + x.numel()].view(x.shape)
    return inside.copy_(x)


def _stored(wide, kind, ids):
    """Where rows of a type lie, in records with their scales behind them, and what they hold."""
    stored, scale = quantize(wide, kind)
    size, per_token = stored.element_size(), wide[0].numel()
    rows_bytes = -(-per_token * size // 4) * 4
    stride = rows_bytes + 4 * wide[0].numel() // wide.shape[-1]
    records = torch.full((V + 2, stride), 255, dtype=torch.uint8)[1:-1]
    records[:, : per_token * size] = stored.contiguous().view(torch.uint8).reshape(V, -1)
    scales = 0
    if scale is not None:
        scales = rows_bytes
        records[:, rows_bytes:] = scale.reshape(V, -1).contiguous().view(torch.uint8)
    code, row_bytes = fused.KINDS[stored.dtype], wide.shape[-1] * size
    near = fused.Near(records.data_ptr(), stride, V, ids, code, row_bytes, scales, records)
    return near, dequantize(stored, scale, torch.float32)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", STATES, ids=str)
@pytest.mark.parametrize("norm", ["l2", "rms"])
def test_gate(count, width, kind, dtype, norm):
    ids, m, s = _ids(count), _guarded(_draw(count, width, dtype=dtype)), _guarded(_draw(width, seed=1))
    near, rows = _stored(_draw(V, width, seed=2), kind, ids)
    out = fused.Gate(near, s, norm_gain(norm, width), EPS)(m)
    p = naive.retoken_gate(rows.double(), s.double(), ids, norm, EPS)
    assert_close("gate", naive.retoken_increment(m.double(), p).to(dtype), out)
    folded = fused.Gate(near, None, 1.0, 0.0)(m)
    assert torch.equal((m.float() * (1 + rows[ids])).to(dtype), folded)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("dtype", STATES, ids=str)
@pytest.mark.parametrize(("experts", "top_k"), [(5, 3), (4, 2), (3, 1)])
def test_mix(count, width, kind, dtype, experts, top_k):
    ids, m, s = _ids(count), _guarded(_draw(count, width, dtype=dtype)), _guarded(_draw(width, seed=1))
    h, R = _guarded(_draw(count, width, seed=3, dtype=dtype)), _draw(experts, width, seed=4, dtype=dtype)
    near, rows = _stored(_draw(V, experts, width, seed=2), kind, ids)
    routed = fused.Route(R, top_k)(h)
    routing = routed.routing
    g = naive.mort_logits(h.double(), R.double().T)
    assert_close("logits", g, routing.logits_TE.double(), units=2.0**31)
    G, w = naive.mort_weights(routing.logits_TE.double(), top_k)
    assert torch.equal(G, routing.chosen_TK)
    assert_close("weights", w.float(), routing.weights_TK)
    gain = norm_gain("rms", width) / math.sqrt(2 * DEPTH)
    out = fused.Mix(near, s, gain, EPS)(m, routed)
    e = naive.mort_mix(rows.double(), ids, G, w)
    r = naive.mort_residual(e, s.double(), DEPTH, "rms", EPS)
    assert_close("sum", (m.double() + r).to(dtype), out, floor=1.0)
    plain = fused.Mix(near, None, 1.0, 0.0)(m, routed)
    assert_close("mixture", (m.double() + e).to(dtype), plain, floor=1.0)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(("heads", "experts", "top_k"), [(2, 1, 1), (2, 5, 3), (3, 2, 2)])
def test_mix_sums_a_positions_records(kind, width, heads, experts, top_k):
    count = 90
    ids, m, s = _ids(count * heads), _guarded(_draw(count, width)), _guarded(_draw(width, seed=1))
    near, rows = _stored(_draw(V, experts, width, seed=2), kind, ids)
    routed = fused.Route(_draw(experts, width, seed=4), top_k)(_guarded(_draw(count, width, seed=3)))
    G, w = routed.routing.chosen_TK, routed.routing.weights_TK.double()
    e = sum(naive.mort_mix(rows.double(), each, G, w) for each in ids.view(count, heads).T)
    gain = norm_gain("rms", width) / math.sqrt(2 * DEPTH)
    out = fused.Mix(near._replace(heads=heads), s, gain, EPS)(m, routed)
    r = naive.mort_residual(e, s.double(), DEPTH, "rms", EPS)
    assert_close("sum", (m.double() + r).float(), out, floor=1.0)
    wrong = ids.clone()
    wrong[7 * heads + heads - 1] = V
    with pytest.raises(IndexError, match="position 7 has no row"):
        fused.Mix(near._replace(heads=heads, slots=wrong), s, gain, EPS)(m, routed)


def test_every_float8_is_read_as_torch_reads_it():
    wide = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn)
    near = fused.Near(wide.data_ptr(), 256, 1, torch.zeros(1, dtype=torch.int64), 3, 256, 0, wide)
    out = fused.Gate(near, None, 1.0, 0.0)(torch.ones(1, 256))
    assert torch.equal((1 + wide.float())[None].nan_to_num(7.0), out.nan_to_num(7.0))


def test_equal_logits_choose_the_lower_number():
    routing = fused.Route(torch.ones(5, 8), 3)(torch.zeros(2, 8)).routing
    assert routing.chosen_TK.tolist() == [[0, 1, 2]] * 2


def test_zero_rows_are_neutral():
    near = fused.near_table(torch.zeros(V, 33), _ids(5))
    m = _draw(5, 33)
    assert torch.equal(m, fused.Gate(near, torch.ones(33), 1.0, EPS)(m))


@pytest.mark.parametrize("wrong", [-1, V])
@pytest.mark.parametrize("count", [3, 20_000])
def test_ids_without_rows_are_refused(wrong, count, threads):
    ids = torch.zeros(count, dtype=torch.int64)
    ids[2] = wrong
    with pytest.raises(IndexError, match="position 2 has no row"):
        fused.Gate(fused.near_table(torch.ones(V, 64), ids), None, 1.0, 0.0)(torch.ones(count, 64))
    rows = torch.ones(V, 2, 64)
    routed = fused.Route(torch.ones(2, 64), 1)(torch.ones(count, 64))
    with pytest.raises(IndexError, match="position 2 has no row"):
        fused.Mix(fused.near_table(rows, ids), None, 1.0, 0.0)(torch.ones(count, 64), routed)


def test_states_of_another_shape_than_the_rows_are_refused():
    rows, ids = torch.ones(V, 2, 64), _ids(5)
    near, routing = fused.near_table(rows, ids), fused.Route(torch.ones(2, 64), 1)(torch.ones(5, 64))
    for shape in ((4, 64), (6, 64), (5, 32), (10, 32)):
        with pytest.raises(ValueError, match=r"5 records for|rows of 64 numbers|states \(5, 32\)"):
            fused.Mix(near, None, 1.0, 0.0)(torch.ones(shape), routing)
        with pytest.raises(ValueError, match=r"5 records for|rows of 64 numbers|states \(5, 32\)"):
            fused.Gate(fused.near_table(rows[:, 0].contiguous(), ids), None, 1.0, 0.0)(torch.ones(shape))


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _in_parts(near, kernel, *states):
    """What a kernel gives for every 7 positions alone: too little to share."""
    some = [slice(i, i + 7) for i in range(0, near.slots.numel(), 7)]
    return torch.cat([kernel(near._replace(slots=near.slots[i]), *(x[i] for x in states)) for i in some])


@pytest.mark.parametrize("count", [360, 1001])
def test_threads_change_no_bit(threads, count):
    ids, m, width, experts = torch.arange(count) % V, _draw(count, 96), 96, 5
    near, s = fused.near_table(_draw(V, width, seed=1), ids), _draw(width, seed=2)
    whole = fused.Gate(near, s, 1.0, EPS)(m)
    assert torch.equal(whole, _in_parts(near, lambda near, m: fused.Gate(near, s, 1.0, EPS)(m), m))
    R, h = _draw(experts, width, seed=3), _draw(count, width, seed=4)
    routed = fused.Route(R, 3)(h)
    parts = [fused.Route(R, 3)(h[i : i + 7]).routing for i in range(0, count, 7)]
    for x, y in zip(routed.routing, zip(*parts, strict=True), strict=True):
        assert torch.equal(x, torch.cat(y))
    near = fused.near_table(_draw(V, experts, width, seed=5), ids)

    def mix(near, m, *routing):
        return fused.Mix(near, s, 1.0, EPS)(m, fused.Routed.of(ops.Routing(*routing)))

    assert torch.equal(fused.Mix(near, s, 1.0, EPS)(m, routed), _in_parts(near, mix, m, *routed.routing))


def test_without_openmp_one_thread_does_it_all(monkeypatch):
    ids, m = torch.arange(1000) % V, _draw(1000, 96)
    near, s = fused.near_table(_draw(V, 96, seed=1), ids), _draw(96, seed=2)
    shared = fused.Gate(near, s, 1.0, EPS)(m)
    parts = room._team()[1]
    monkeypatch.setattr(room, "_team", lambda: (0, parts))
    assert torch.equal(shared, fused.Gate(near, s, 1.0, EPS)(m))


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP has another name elsewhere")
def test_pytorch_has_an_openmp_whose_threads_can_be_asked():
    assert room._team()[0]


@pytest.mark.parametrize("width", [7, 8, 64])
def test_layers_of_a_pass_never_share_what_they_give(width):
    near = fused.near_table(_draw(V, 4, width), _ids(6).view(2, 3))
    own = fused.Room((2, 3), width, fused.Places.of(near.slots), layers=2)
    mix, route = fused.Mix(near, None, 1.0, 0.0), fused.Route(torch.ones(4, width), 1)
    found = [route(_draw(2, 3, width, seed=i), own) for i in range(5)]
    mixed = [mix(_draw(2, 3, width, seed=i), found[0], own) for i in range(5)]
    mixed += [mix(_draw(2, 3, width).bfloat16(), found[0], own) for _ in range(3)]
    assert all(x.data_ptr() % 64 == 0 for x in mixed)
    given = [*mixed, *(x for routed in found for x in routed.routing)]
    spans = sorted((x.data_ptr(), x.data_ptr() + x.nbytes) for x in given)
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(spans))
    assert all(
        x.data_ptr() == at for routed in found for x, at in zip(routed.routing, routed[1:4], strict=True)
    )


def test_states_of_another_shape_than_the_pass_are_refused():
    near = fused.near_table(_draw(V, 8), _ids(6).view(2, 3))
    own = fused.Room((2, 3), 8, fused.Places.of(near.slots))
    gate, route = fused.Gate(near, None, 1.0, 0.0), fused.Route(torch.ones(4, 8), 1)
    for wrong in (_draw(3, 2, 8), _draw(6, 8), _draw(2, 3, 8).double(), _draw(2, 3, 8, dtype=torch.float16)):
        with pytest.raises(fused.Unserved):
            gate(wrong, own)
        with pytest.raises(fused.Unserved):
            route(wrong, own)


def test_a_pass_of_other_rows_is_refused():
    near, states = fused.near_table(_draw(V, 8), _ids(6)), _draw(6, 8)
    gate, places = fused.Gate(near, None, 1.0, 0.0), fused.Places.of(near.slots)
    rows, choice = fused.near_table(_draw(V, 2, 8), _ids(6)), fused.Route(torch.ones(2, 8), 1)(states)
    summed = fused.Mix(rows._replace(heads=2), None, 1.0, 0.0)
    for wrong in (fused.Room((6,), 8), fused.Room((3,), 8, places, heads=2)):  # no records; two a position
        with pytest.raises(fused.Unserved):
            gate(states[: wrong.shape[0]], wrong)
    with pytest.raises(fused.Unserved):
        summed(states, choice, fused.Room((6,), 8, places))
    with pytest.raises(fused.Unserved):
        fused.Room((5,), 8, places)
    with pytest.raises(fused.Unserved):
        fused.Route(torch.ones(4, 9), 1)(states, fused.Room((6,), 8))


def test_what_is_ready_serves_passes_in_turns():
    table, width = _draw(V, 4, 16), 16
    gate, mix = (
        fused.Gate(fused.near_table(table[:, 0].contiguous(), _ids(1)), torch.ones(width), 1.0, EPS),
        fused.Mix(fused.near_table(table, _ids(1)), torch.ones(width), 1.0, EPS),
    )
    route = fused.Route(_draw(4, width, seed=2), 2)
    passes = [_ids(count) for count in (7, 3, 7)]
    rooms = [fused.Room((len(ids),), width, fused.Places.of(ids), layers=2) for ids in passes]
    states = [_draw(len(ids), width, seed=10 + i) for i, ids in enumerate(passes)]
    chosen = [route(x, own) for x, own in zip(states, rooms, strict=True)]
    for ids, own, x, routed in zip(passes, rooms, states, chosen, strict=True):
        alone = fused.Mix(fused.near_table(table, ids), torch.ones(width), 1.0, EPS)(x, route(x))
        assert torch.equal(mix(x, routed, own), alone)
        rows = fused.near_table(table[:, 0].contiguous(), ids)
        assert torch.equal(gate(x, own), fused.Gate(rows, torch.ones(width), 1.0, EPS)(x))


def test_what_has_a_gradient_is_left_to_the_plain_operators():
    with torch.enable_grad():
        assert not fused.serves(torch.ones(2))
    assert fused.serves(torch.ones(2))
    assert not fused.serves(torch.ones(2, dtype=torch.float64))
    assert not fused.serves(torch.ones(2, device="meta"))
    assert fused.near_table(torch.ones(3, 4, dtype=torch.float64), _ids(2)) is None


def test_states_that_are_not_contiguous_are_read_right():
    m = _draw(33, 5).T
    near, s = fused.near_table(_draw(V, 33, seed=1), _ids(5)), _draw(33, seed=2)
    wanted = ops.gate(m, _draw(V, 33, seed=1)[_ids(5)], s, 1.0, EPS)
    assert_close("gate", wanted, fused.Gate(near, s, 1.0, EPS)(m))


def test_states_of_another_width_than_the_router_are_refused():
    with pytest.raises(ValueError, match=r"states \(3, 65\); accepted in this pass: \(3, 64\)"):
        fused.Route(torch.ones(2, 64), 1)(torch.ones(3, 65))


def test_a_choice_for_other_positions_is_refused():
    near, route = fused.near_table(_draw(V, 2, 8), _ids(6)), fused.Route(torch.ones(2, 8), 1)
    mix = fused.Mix(near, None, 1.0, 0.0)
    for positions in ((5,), (2, 3)):
        with pytest.raises(fused.Unserved, match="a choice for positions"):
            mix(_draw(6, 8), route(_draw(*positions, 8)))
