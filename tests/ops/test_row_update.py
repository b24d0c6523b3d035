"""Updates of touched rows: by hand, compiled against plain torch, and nothing written elsewhere."""

import dataclasses
import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retoken.ops.row_update import (
    AdamRows,
    DecayRows,
    Noise,
    Rates,
    RowWiseRows,
    bias_corrections,
    cpu,
    naive,
    noise_key,
    update_rows,
    use_huge_pages,
)
from retoken.ops.row_update.noise import noise_bits, round_stochastically
from retoken.testing import assert_close

V, E, D = 131, 5, 33
BETA1, BETA2, EPS, LR = 0.95, 0.9, 1e-8, 1e-2
TWINS = {AdamRows: naive.adamw, RowWiseRows: naive.row_wise, DecayRows: naive.decay}
KINDS = ("adamw", "row_wise", "decay")
DTYPES = (torch.float32, torch.bfloat16)
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float64: torch.int64}


def make(kind, dtype=torch.float32, shape=(V, E, D), rows=40, *, counts=True, decays=True, seed=0):
    """A job on random rows; everything of the other rows is NaN."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    ids = torch.randperm(shape[0], generator=g)[:rows].sort().values
    untouched = torch.ones(shape[0], dtype=torch.bool)
    untouched[ids] = False

    def poisoned(*size, draw=torch.randn, kind=wide):
        values = draw(size, generator=g).to(kind)
        values[untouched] = math.nan
        return values

    weight = poisoned(*shape, kind=dtype)
    settled = poisoned(shape[0], draw=torch.rand, kind=torch.float64).mul_(-0.3)
    noise = Noise(key=noise_key(seed, 7)) if dtype == torch.bfloat16 else None
    if kind == "decay":
        return DecayRows(weight=weight, ids_R=ids, settled_V=settled, log_decay=-0.3, noise=noise)
    lines = bias_corrections(0.0 if kind == "row_wise" else BETA1, BETA2, None if counts else 3)
    shared = {
        "weight": weight,
        "ids_R": ids,
        "grad": torch.randn((rows, *shape[1:]), generator=g).to(dtype),
        "rates": Rates(lr=LR, beta1=BETA1, beta2=BETA2, eps=EPS, corrections_K2=lines, log_decay=-0.3),
        "touches_V": torch.randint(0, 500, shape[:1], generator=g).int() if counts else None,
        "settled_V": settled if decays else None,
        "noise": noise,
    }
    if kind == "adamw":
        second = poisoned(*shape, draw=torch.rand)
        return AdamRows(exp_avg=poisoned(*shape), exp_avg_sq=second, **shared)
    return RowWiseRows(mean_sq=poisoned(*shape[:-1], draw=torch.rand), **shared)


def tensors(job):
    found = {f.name: getattr(job, f.name) for f in dataclasses.fields(job)}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def bits(x):
    return x.view(INTEGERS[x.dtype]) if x.is_floating_point() else x


def assert_same_bits(one, other):
    for name, value in tensors(one).items():
        assert torch.equal(bits(value), bits(tensors(other)[name])), name


def assert_jobs_close(twin, compiled, ids):
    """Counters alike, touched rows to some roundings (of the weight's type, if stochastically rounded)."""
    for name, value in tensors(twin).items():
        other = tensors(compiled)[name]
        if name in ("ids_R", "grad", "touches_V"):
            assert torch.equal(value, other), name
        elif len(ids):
            assert_close(name, value[ids], other[ids], units=1 if value.dtype == torch.bfloat16 else 4)


def test_adamw_by_hand():
    """Two touches of one row, each operation spelt out; the other row keeps its bits."""
    weight = torch.tensor([[1.0, -2.0], [5.0, 6.0]], dtype=torch.float64)
    m, v, touches = torch.zeros_like(weight), torch.zeros_like(weight), torch.zeros(2, dtype=torch.int32)
    settled = torch.zeros(2, dtype=torch.float64)
    expected, first, second = [1.0, -2.0], [0.0, 0.0], [0.0, 0.0]
    log_decay = 0.0
    for n, gradient in enumerate(([0.5, -3.0], [0.1, 4.0]), start=1):
        log_decay += math.log(1 - LR * 0.1)
        rates = Rates(
            lr=LR,
            beta1=BETA1,
            beta2=BETA2,
            eps=EPS,
            corrections_K2=bias_corrections(BETA1, BETA2),
            log_decay=log_decay,
        )
        update_rows(
            [
                AdamRows(
                    weight=weight,
                    exp_avg=m,
                    exp_avg_sq=v,
                    ids_R=torch.tensor([0]),
                    grad=torch.tensor([gradient], dtype=torch.float64),
                    rates=rates,
                    touches_V=touches,
                    settled_V=settled,
                )
            ]
        )
        for j, g in enumerate(gradient):
            first[j] = BETA1 * first[j] + (1 - BETA1) * g
            second[j] = BETA2 * second[j] + (1 - BETA2) * g * g
            root = math.sqrt(second[j] / (1 - BETA2**n))
            expected[j] = (1 - LR * 0.1) * expected[j] - LR * first[j] / (1 - BETA1**n) / (root + EPS)
    assert_close("weight", torch.tensor(expected, dtype=torch.float64), weight[0], units=4)
    assert_close("first moment", torch.tensor(first, dtype=torch.float64), m[0], units=4)
    assert weight[1].tolist() == [5.0, 6.0] and m[1].tolist() == v[1].tolist() == [0.0, 0.0]
    assert touches.tolist() == [2, 0] and settled.tolist() == [log_decay, 0.0]


def test_row_wise_by_hand():
    """One scalar for each row of the innermost dimension: a modulator of which nothing was used stays."""
    weight, mean_sq = torch.ones(1, 2, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    grad = torch.tensor([[[3.0, 4.0], [0.0, 0.0]]], dtype=torch.float64)
    lines = bias_corrections(0.0, BETA2)
    rates = Rates(lr=LR, beta1=0.0, beta2=BETA2, eps=EPS, corrections_K2=lines)
    touches = torch.zeros(1, dtype=torch.int32)
    update_rows(
        [
            RowWiseRows(
                weight=weight,
                mean_sq=mean_sq,
                ids_R=torch.tensor([0]),
                grad=grad,
                rates=rates,
                touches_V=touches,
            )
        ]
    )
    scale = LR / (math.sqrt(12.5) + EPS)
    moved = torch.tensor([[[1 - scale * 3, 1 - scale * 4], [1, 1]]], dtype=torch.float64)
    assert_close("weight", moved, weight, units=4)
    expected = torch.tensor([[12.5 * (1 - BETA2), 0]], dtype=torch.float64)
    assert_close("mean square", expected, mean_sq, units=4)


def test_decay_by_hand():
    weight = torch.ones(3, 2)
    settled = torch.tensor([0.0, math.log(0.5), math.log(0.25)], dtype=torch.float64)
    job = DecayRows(weight=weight, ids_R=torch.tensor([0, 1]), settled_V=settled, log_decay=math.log(0.25))
    update_rows([job])
    assert weight.tolist() == [[0.25, 0.25], [0.5, 0.5], [1, 1]]
    assert settled.tolist() == [math.log(0.25)] * 3


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.95, 0.9), (0.0, 0.0)])
def test_bias_corrections_are_the_formula_and_end_at_one(beta1, beta2):
    lines = bias_corrections(beta1, beta2)
    for n in (1, 2, 17, 1000):
        line = lines[min(n, len(lines)) - 1]
        assert line[0].item() == pytest.approx(1 / (1 - beta1**n), rel=1e-15)
        assert line[1].item() == pytest.approx(1 / math.sqrt(1 - beta2**n), rel=1e-15)
        assert torch.equal(bias_corrections(beta1, beta2, n), line.unsqueeze(0)) or n > len(lines)
    assert lines[-1].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [0, 1, 40, V])
@pytest.mark.parametrize("shape", [(V, D), (V, E, D)])
def test_compiled_equals_plain_torch_and_leaves_other_rows_alone(kind, dtype, shape, rows):
    twin, compiled, before = (make(kind, dtype, shape, rows) for _ in range(3))
    assert cpu.takes(compiled)
    TWINS[type(twin)](twin)
    update_rows([compiled])
    assert_jobs_close(twin, compiled, twin.ids_R)
    others = torch.ones(V, dtype=torch.bool)
    others[twin.ids_R] = False
    for job in (twin, compiled):
        for name, value in tensors(job).items():
            if value.shape[:1] == (V,) and name not in ("ids_R", "grad"):
                assert torch.equal(bits(value)[others], bits(tensors(before)[name])[others]), name


@pytest.mark.parametrize("kind", ["adamw", "row_wise"])
@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("decays", [False, True])
def test_counts_and_decay_are_optional(kind, counts, decays):
    twin, compiled = (make(kind, counts=counts, decays=decays) for _ in range(2))
    TWINS[type(twin)](twin)
    update_rows([compiled])
    assert_jobs_close(twin, compiled, twin.ids_R)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from(DTYPES),
    vocab=st.integers(1, 40),
    inner=st.lists(st.integers(1, 70), min_size=1, max_size=2),
    share=st.floats(0, 1),
)
def test_compiled_equals_plain_torch_at_any_size(kind, dtype, vocab, inner, share):
    twin, compiled = (make(kind, dtype, (vocab, *inner), round(share * vocab)) for _ in range(2))
    TWINS[type(twin)](twin)
    update_rows([compiled])
    assert_jobs_close(twin, compiled, twin.ids_R)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_threads_change_no_bit(kind, dtype, monkeypatch):
    monkeypatch.setattr(cpu, "BYTES_PER_CHUNK", 1)
    jobs = {n: [make(kind, dtype, seed=seed) for seed in range(3)] for n in (1, 2, 7)}
    for threads, several in jobs.items():
        cpu.run(several, threads)
    for threads in (2, 7):
        for one, other in zip(jobs[1], jobs[threads], strict=True):
            assert_same_bits(one, other)


def test_an_error_in_a_thread_is_raised():
    from retoken.ops.row_update.threads import divide

    def fail(start, stop):
        if start > 5:
            raise ValueError(f"rows {start} to {stop}")

    with pytest.raises(ValueError, match="rows 6 to 8"):
        divide([(8, 2, fail)], 2)


def test_threads_do_every_row_once():
    from retoken.ops.row_update.threads import divide

    done = [[0] * 10, [0] * 7]

    def count(which, start, stop):
        for row in range(start, stop):
            done[which][row] += 1

    divide([(10, 3, functools.partial(count, 0)), (7, 2, functools.partial(count, 1)), (0, 1, count)], 3)
    assert done == [[1] * 10, [1] * 7]


@pytest.mark.parametrize("ids", [[-1, 2], [0, V]])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_outside_the_table_is_refused_and_nothing_written(kind, ids):
    job, before = (make(kind, rows=2) for _ in range(2))
    job.ids_R.copy_(torch.tensor(ids))
    before.ids_R.copy_(torch.tensor(ids))
    with pytest.raises(IndexError, match=f"rows 0..{V - 1}"):
        update_rows([job])
    assert_same_bits(job, before)


def test_other_types_and_layouts_take_the_plain_path():
    assert not cpu.takes(make("adamw", torch.float64))
    for name in ("weight", "exp_avg"):
        job, strided = make("adamw"), make("adamw")
        other = getattr(strided, name).transpose(1, 2).contiguous().transpose(1, 2)
        strided = dataclasses.replace(strided, **{name: other})
        assert not cpu.takes(strided)
        update_rows([strided])
        naive.adamw(job)
        assert torch.equal(job.weight[job.ids_R], strided.weight[job.ids_R])
        assert torch.equal(job.exp_avg[job.ids_R], strided.exp_avg[job.ids_R])


def test_a_strided_gradient_is_read_right():
    job, strided = make("adamw"), make("adamw")
    grad = strided.grad.transpose(1, 2).contiguous().transpose(1, 2)
    update_rows([job])
    update_rows([dataclasses.replace(strided, grad=grad)])
    assert_same_bits(job, strided)


def test_a_nan_gradient_is_seen_in_the_row_and_nowhere_else():
    job = make("adamw")
    job.grad[3, 2, 5] = math.nan
    update_rows([job])
    missing = job.weight[job.ids_R].isnan().nonzero().tolist()
    assert missing == [[3, 2, 5]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_decay_has_the_twin_s_random_bits(dtype):
    """Its arithmetic is one exact product, so every bit must agree, the rounding's too."""
    twin, compiled = (make("decay", dtype) for _ in range(2))
    naive.decay(twin)
    update_rows([compiled])
    assert_same_bits(twin, compiled)


def test_random_bits_are_uniform_and_unlike_each_other():
    ids = torch.arange(200)
    drawn = noise_bits(Noise(key=noise_key(1, 2, 3)), ids, 501)
    assert drawn.min() >= 0 and drawn.max() < 1 << 16
    counts = torch.bincount((drawn >> 8).flatten(), minlength=256).double()
    expected = drawn.numel() / 256
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi2 - 255) < 5 * math.sqrt(2 * 255)
    x = drawn.double() / (1 << 16) - 0.5
    others = {
        "row": x.roll(1, 0),
        "column": x.roll(1, 1),
        "diagonal": x.roll((1, 1), (0, 1)),
        "key": noise_bits(Noise(key=noise_key(1, 2, 4)), ids, 501).double() / (1 << 16) - 0.5,
    }
    for name, other in others.items():
        correlation = (x * other).mean().item() * 12
        assert abs(correlation) < 5 / math.sqrt(x.numel()), name


def test_keys_differ_in_every_part():
    keys = {noise_key(*parts) for parts in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0), (0, 0, 2))}
    assert len(keys) == 6 and all(0 <= key < 1 << 64 for key in keys)


def test_a_part_of_a_table_draws_the_bits_it_has_in_the_whole():
    whole = noise_bits(Noise(key=5), torch.arange(V), E * D)
    part = Noise(key=5, first_row=1, row_stride=3, first_column=2 * D)
    assert torch.equal(noise_bits(part, torch.arange(10), D), whole[1 : 1 + 30 : 3, 2 * D : 3 * D])


def test_stochastic_rounding_is_unbiased():
    value, draws = 1 + 2**-7 * 0.3, 1 << 17
    rounded = round_stochastically(
        torch.full((1, draws), value), noise_bits(Noise(key=1), torch.zeros(1, dtype=torch.long), draws)
    ).double()
    assert set(rounded.unique().tolist()) == {1.0, 1 + 2**-7}
    spread = 2**-7 * math.sqrt(0.3 * 0.7 / draws)
    assert abs(rounded.mean().item() - value) < 5 * spread


@settings(max_examples=200, deadline=None)
@given(
    value=st.floats(-(2.0**127), 2.0**127, width=32),
    low=st.integers(0, (1 << 16) - 1),
)
def test_stochastic_rounding_takes_a_neighbour(value, low):
    x = torch.tensor([value])
    chosen = round_stochastically(x, torch.tensor([low])).float()
    down = (x.view(torch.int32) & -65536).view(torch.float32)
    up = ((x.view(torch.int32) & -65536) + 65536).view(torch.float32)
    assert chosen.item() in ({x.item()} if torch.equal(x, down) else {down.item(), up.item()})


def test_what_is_not_finite_stays_so():
    values = torch.tensor([math.inf, -math.inf, math.nan])
    rounded = round_stochastically(values, torch.full((3,), 65535))
    assert rounded[:2].tolist() == [math.inf, -math.inf] and rounded[2].isnan()
    job = make("decay", torch.bfloat16, (3, 2), 3)
    job.weight[:, 0] = values.bfloat16()
    update_rows([job])
    assert job.weight[:2, 0].tolist() == [math.inf, -math.inf] and job.weight[2, 0].isnan()


def test_huge_pages_change_where_memory_lies_and_nothing_else():
    x = torch.arange(3 << 20, dtype=torch.float32)
    before, address = x.clone(), x.data_ptr()
    use_huge_pages(x)
    use_huge_pages(x[:5])
    use_huge_pages(torch.empty(0))
    use_huge_pages(torch.empty(3, device="meta"))
    assert torch.equal(x, before) and x.data_ptr() == address
