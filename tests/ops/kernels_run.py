"""The Triton kernels against the naive equations in float64: on a GPU, or in Triton's interpreter.

A process of its own, as Triton decides at its import whether it interprets: run by test_triton.py under
TRITON_INTERPRET=1, and by `make test-gpu` where there is a GPU. Not collected by name. Tables, increments and
outputs lie inside larger buffers of NaN; in the interpreter every address the kernels load or store is
written down and held against what they may touch.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from retoken.ops import naive
from retoken.ops.triton import folded_gate_rows, folded_row_into, gate_rows, launch, mix_rows_into
from retoken.testing import kernel_device, round_as_a_gpu_does

DEVICE = kernel_device()
INTERPRETED = DEVICE.type == "cpu"
PAD, V, EPS, GAIN = 17, 11, 1e-6, 2.5
TOKENS, WIDTHS, DTYPES = (1, 7, 63), (1, 63, 100, 1000), (torch.float32, torch.bfloat16)
SHAPES = [(7, width) for width in WIDTHS] + [(1, 100), (63, 100), (63, 63), (1, 1000)]
MIXES = [(5, 3), (4, 2), (4, 1)]


class Access(NamedTuple):
    """Addresses of one load or store, masked ones left out, and the bytes at each."""

    store: bool
    addresses: np.ndarray
    size: int


@pytest.fixture(autouse=True)
def accesses(monkeypatch):
    """Every load and store since the test began, in order; on a GPU none is seen."""
    if not INTERPRETED:
        return None
    from triton.runtime import interpreter

    found, builder = [], interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def note(is_store, pointers, mask):
        size = pointers.get_element_ty().primitive_bitwidth // 8
        where, keep = np.broadcast_arrays(pointers.data, mask.data)
        found.append(Access(is_store, where[keep].astype(np.int64), size))

    def noted_load(self, pointers, mask, *rest):
        note(False, pointers, mask)
        return load(self, pointers, mask, *rest)

    def noted_store(self, pointers, value, mask, *rest):
        note(True, pointers, mask)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(builder, "create_masked_load", noted_load)
    monkeypatch.setattr(builder, "create_masked_store", noted_store)
    return found


@pytest.fixture(autouse=True)
def rounding(monkeypatch):
    """float32 to bfloat16 to the nearest, as a GPU does: the interpreter cuts the low bits off."""
    if INTERPRETED:
        round_as_a_gpu_does(monkeypatch)


@pytest.fixture(autouse=True)
def outputs(monkeypatch):
    """(buffer, size) of all that `torch.empty` and `empty_like` gave: slices of larger NaN-filled buffers."""
    made, empty = [], torch.empty

    def guarded(*shape, **kwargs):
        shape = shape[0] if shape and isinstance(shape[0], tuple | list | torch.Size) else shape
        if not kwargs.get("dtype", torch.float32).is_floating_point:
            return empty(shape, **kwargs)
        size = math.prod(shape)
        buffer = empty(size + 2 * PAD, **kwargs).fill_(math.nan)
        made.append((buffer, size))
        return buffer[PAD : PAD + size].view(shape)

    monkeypatch.setattr(torch, "empty", guarded)
    monkeypatch.setattr(torch, "empty_like", lambda x: guarded(x.shape, dtype=x.dtype, device=x.device))
    yield made
    for buffer, size in made:
        assert buffer[:PAD].isnan().all() and buffer[PAD + size :].isnan().all(), "written past the end"
        assert not buffer[PAD : PAD + size].isnan().any(), "an element was left out"


def inside(values):
    """The values, a leaf, in the middle of a larger NaN-filled buffer."""
    buffer = torch.full((values.numel() + 2 * PAD,), math.nan, dtype=values.dtype, device=DEVICE)
    return buffer[PAD : PAD + values.numel()].view(values.shape).copy_(values)


def span(tensor):
    """Addresses of a tensor's elements."""
    offsets = sum(
        torch.arange(size).view(-1, *[1] * (tensor.dim() - i - 1)) * stride
        for i, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
    )
    return tensor.data_ptr() + offsets.numpy().ravel().astype(np.int64) * tensor.element_size()


def draw(dtype, seed=0, **shapes):
    """Leaves of N(0, 1), rounded to their type and poisoned around; weights are shares, in float32."""
    chance, leaves = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        values = torch.randn(shape, generator=chance)
        if name == "weights":
            values = values.sigmoid() / values.sigmoid().sum(-1, keepdim=True)
        short = dtype if name in ("increment", "table") else torch.float32
        leaves[name] = inside(values.to(short)).requires_grad_()
    return leaves


def choices(tokens, num_modulators, top_k):
    """Distinct modulators of each token, [T, K]."""
    chance = torch.Generator().manual_seed(1)
    return torch.rand(tokens, num_modulators, generator=chance).topk(top_k).indices.to(DEVICE)


def naive_gate(ids):
    def gate(increment, table, scale):
        return naive.retoken_increment(increment, 1 + GAIN * scale * naive.norm_l2(table[ids], EPS))

    return gate


def naive_mix(ids, chosen):
    def mix(increment, table, weights, scale):
        e = naive.mort_mix(table, ids, chosen, weights)
        return naive.mort_write_back(increment, 0.0, GAIN * scale * naive.norm_l2(e, EPS))

    return mix


def compare(reference, fast, leaves):
    """Output and every gradient of `fast` against `reference` in float64, within rounding."""
    doubles = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}
    ref, out = reference(**doubles), fast(**leaves)
    assert out.dtype == leaves["increment"].dtype
    grad = inside(torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype))
    ref.backward(grad.double())
    out.backward(grad)
    close("output", ref, out)
    for name, leaf in leaves.items():
        assert leaf.grad.dtype == leaf.dtype
        close(f"gradient of {name}", doubles[name].grad, leaf.grad)


def close(name, ref, out):
    """Within 0.51 roundings of each element of a short type, and 64 float32 roundings of the largest.

    Not less than 1 stands for the largest: with D = 1 Norm is constant, and rounding is all of its gradient.
    """
    assert out.isfinite().all(), name
    error = (ref - out.double()).abs()
    largest = ref.abs().max().clamp(min=1.0)
    own = 0 if out.dtype == torch.float32 else 0.51 * torch.finfo(out.dtype).eps * ref.abs()
    excess = error - own - 64 * torch.finfo(torch.float32).eps * largest
    assert excess.max() <= 0, f"{name}: off by {error.max():.3g}, largest element {largest:.3g}"


def repeated(tokens):
    """Ids with repeats as soon as there is more than one token."""
    return (
        torch.randint(0, V, (tokens,), generator=torch.Generator().manual_seed(3)).clamp(max=V - 3).to(DEVICE)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width"), SHAPES)
def test_gate(tokens, width, dtype, accesses):
    ids = repeated(tokens)
    leaves = draw(dtype, increment=(tokens, width), table=(V, width), scale=(width,))
    compare(
        naive_gate(ids),
        lambda increment, table, scale: gate_rows(increment, table, ids, scale, GAIN, EPS),
        leaves,
    )
    each_row_once_a_pass(accesses, leaves["table"], leaves["table"][ids].shape[0], ids, None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("num_modulators", "top_k"), MIXES)
@pytest.mark.parametrize(("tokens", "width"), SHAPES)
def test_mix(tokens, width, num_modulators, top_k, dtype, accesses):
    ids, chosen = repeated(tokens), choices(tokens, num_modulators, top_k)
    shapes = {"table": (V, num_modulators, width), "weights": (tokens, top_k), "scale": (width,)}
    leaves = draw(dtype, increment=(tokens, width), **shapes)
    compare(
        naive_mix(ids, chosen),
        lambda increment, table, weights, scale: mix_rows_into(
            increment, table, ids, chosen, weights, scale, GAIN, EPS
        ),
        leaves,
    )
    each_row_once_a_pass(accesses, leaves["table"], tokens * top_k, ids, chosen)


def each_row_once_a_pass(accesses, table, rows, ids, chosen):
    """Forward and backward read exactly the elements of the tokens' rows, each as often as it was named."""
    if accesses is None:
        return
    low, high = table.data_ptr() - PAD * table.element_size(), span(table)[-1] + PAD * table.element_size()
    assert all(not ((a.addresses >= low) & (a.addresses <= high)).any() for a in accesses if a.store)
    read = np.concatenate([a.addresses for a in accesses if not a.store])
    read = np.sort(read[(read >= low) & (read <= high)])
    named = table.detach()[ids] if chosen is None else table.detach()[ids.unsqueeze(-1), chosen]
    assert named.numel() == rows * table.shape[-1]
    where = torch.from_numpy(span(table)).view(table.shape)
    expected = where[ids] if chosen is None else where[ids.unsqueeze(-1), chosen]
    assert np.array_equal(read, np.sort(np.repeat(expected.numpy().ravel(), 2)))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize(("tokens", "width"), SHAPES)
def test_folded_gate(tokens, width, dtype, accesses):
    ids = repeated(tokens)
    leaves = draw(dtype, increment=(tokens, width), table=(V, width))
    with torch.no_grad():
        out = folded_gate_rows(leaves["increment"], leaves["table"], ids)
        close("output", leaves["increment"].double() * (1 + leaves["table"][ids].double()), out)
    if accesses is not None:
        moved = sum(len(a.addresses) * a.size for a in accesses)
        assert moved == 3 * tokens * width * dtype.itemsize + 8 * tokens


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
@pytest.mark.parametrize(("tokens", "width"), SHAPES)
def test_folded_row(tokens, width, dtype, accesses):
    """MoRT folded with one modulator a token; the increment's gradient is the output's."""
    ids, chosen = repeated(tokens), choices(tokens, 5, 1).squeeze(-1)
    leaves = draw(dtype, increment=(tokens, width), table=(V, 5, width))
    table = leaves["table"].requires_grad_(False)
    out = folded_row_into(leaves["increment"], table, ids, chosen)
    close("output", leaves["increment"].double() + table[ids, chosen].double(), out)
    if accesses is not None:
        moved = sum(len(a.addresses) * a.size for a in accesses)
        assert moved == 3 * tokens * width * dtype.itemsize + 16 * tokens
    out.backward(grad := inside(torch.randn(tokens, width).to(dtype)))
    assert torch.equal(leaves["increment"].grad, grad)


@pytest.mark.skipif(not INTERPRETED, reason="addresses are seen in the interpreter")
@pytest.mark.parametrize("name", ["gate", "mix"])
def test_nothing_else_is_touched(name, accesses, outputs):
    """Loads lie within the arguments, stores fill the results: by address, whatever became of the value."""
    tokens, width = 7, 100
    ids, chosen = repeated(tokens), choices(tokens, 5, 3)
    shapes = {"table": (V, 5, width), "weights": (tokens, 3), "scale": (width,)}
    leaves = draw(torch.bfloat16, increment=(tokens, width), **shapes)
    m, table, weights, scale = leaves.values()
    grad = inside(torch.ones(tokens, width, dtype=torch.bfloat16))
    outputs.clear()
    if name == "gate":
        gate_rows(m, table[:, 2], ids, scale, GAIN, EPS).backward(grad)
    else:
        mix_rows_into(m, table, ids, chosen, weights, scale, GAIN, EPS).backward(grad)
    arguments = np.concatenate([span(x.detach()) for x in (*leaves.values(), ids, chosen, grad)])
    assert np.isin(np.concatenate([a.addresses for a in accesses if not a.store]), arguments).all()
    results = np.concatenate([span(buffer[PAD : PAD + size]) for buffer, size in outputs])
    stored = np.concatenate([a.addresses for a in accesses if a.store])
    assert len(outputs) == 4
    assert np.array_equal(np.sort(stored), np.sort(results)), "each element is stored once, nothing else is"


def test_the_parts_of_the_scale_s_gradient_and_the_last_program(monkeypatch):
    """Several tokens a program, and a last program with fewer."""
    monkeypatch.setattr(launch, "MAX_PROGRAMS", 4)
    assert [launch.tokens_per_program(n) for n in (1, 4, 5, 7, 63)] == [1, 1, 2, 2, 16]
    for tokens in (7, 63):
        ids, chosen = repeated(tokens), choices(tokens, 5, 3)
        shapes = {"increment": (tokens, 33), "scale": (33,)}
        compare(
            naive_gate(ids),
            lambda increment, scale, table, ids=ids: gate_rows(increment, table, ids, scale, GAIN, EPS),
            draw(torch.float32, **shapes, table=(V, 33)),
        )
        compare(
            naive_mix(ids, chosen),
            lambda increment, scale, table, weights, ids=ids, chosen=chosen: mix_rows_into(
                increment, table, ids, chosen, weights, scale, GAIN, EPS
            ),
            draw(torch.float32, **shapes, table=(V, 5, 33), weights=(tokens, 3)),
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows_are_neutral_and_their_gradients_are_those_of_the_equation(dtype):
    tokens, width = 5, 33
    ids, chosen = torch.tensor([0, 4, 0, 8, 4], device=DEVICE), choices(5, 4, 2)
    leaves = draw(dtype, increment=(tokens, width), scale=(width,), table=(V, width))
    leaves["table"].data[[0, 4]] = 0
    out = gate_rows(leaves["increment"], leaves["table"], ids, leaves["scale"], GAIN, EPS)
    assert torch.equal(out[[0, 1, 2, 4]], leaves["increment"][[0, 1, 2, 4]])
    compare(
        naive_gate(ids),
        lambda increment, scale, table: gate_rows(increment, table, ids, scale, GAIN, EPS),
        leaves,
    )
    leaves = draw(dtype, increment=(tokens, width), scale=(width,), table=(V, 4, width), weights=(tokens, 2))
    leaves["table"].data[[0, 4]] = 0
    compare(
        naive_mix(ids, chosen),
        lambda increment, scale, table, weights: mix_rows_into(
            increment, table, ids, chosen, weights, scale, GAIN, EPS
        ),
        leaves,
    )
    assert leaves["table"].grad[0].abs().max() > 1e4


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale_zero_returns_the_increment_bit_for_bit(dtype):
    m, table = draw(dtype, increment=(7, 100), table=(V, 5, 100)).values()
    ids, zero = repeated(7), torch.zeros(100, device=DEVICE)
    weights = torch.full((7, 3), 1 / 3, device=DEVICE)
    assert torch.equal(gate_rows(m, table[:, 0], ids, zero, GAIN, EPS), m)
    assert torch.equal(mix_rows_into(m, table, ids, choices(7, 5, 3), weights, zero, GAIN, EPS), m)


def test_other_types_strides_and_no_tokens():
    """int32 ids, short scales and weights, float16 tables, expanded gradients, columns of an increment."""
    ids, chosen = repeated(7).int(), choices(7, 5, 3).int()
    wide, table = draw(torch.float16, increment=(7, 200), table=(V, 5, 100)).values()
    scale = torch.randn(100, device=DEVICE).bfloat16()
    weights = torch.rand(7, 3, device=DEVICE).bfloat16()
    m = wide[:, 50:150]
    out = mix_rows_into(m, table, ids, chosen, weights, scale, GAIN, EPS)
    ref = naive_mix(ids, chosen.long())(m.double(), table.double(), weights.double(), scale.double())
    close("mix", ref, out)
    out.sum().backward()
    assert table.grad.isfinite().all() and wide.grad[:, 50:150].eq(1).all()
    close("gate", naive_gate(ids)(m.double(), table[:, 1].double(), scale.double()),
          gate_rows(m, table[:, 1], ids, scale, GAIN, EPS))  # fmt: skip
    for none in (
        gate_rows(m[:0], table[:, 1], ids[:0], scale, GAIN, EPS),
        mix_rows_into(m[:0], table, ids[:0], chosen[:0], weights[:0], scale, GAIN, EPS),
    ):
        assert none.shape == (0, 100)
        none.sum().backward()


def test_a_table_s_strides_are_its_own():
    """Rows in wider ones, modulators before tokens, and every second token."""
    ids, chosen = repeated(7), choices(7, 5, 3)
    shapes = {"increment": (7, 33), "weights": (7, 3), "scale": (33,)}
    for view, shape in (
        (lambda table: table[:, :, 8:41], (V, 5, 48)),
        (lambda table: table.transpose(0, 1), (5, V, 33)),
        (lambda table: table[::2], (2 * V, 5, 33)),
    ):
        compare(
            lambda table, view=view, **rest: naive_mix(ids, chosen)(table=view(table), **rest),
            lambda increment, table, weights, scale, view=view: mix_rows_into(
                increment, view(table), ids, chosen, weights, scale, GAIN, EPS
            ),
            draw(torch.float32, **shapes, table=shape),
        )


def test_a_row_of_the_largest_width():
    leaves = draw(torch.bfloat16, increment=(2, 8192), table=(V, 8192), scale=(8192,))
    ids = torch.tensor([3, 3], device=DEVICE)
    compare(
        naive_gate(ids),
        lambda increment, table, scale: gate_rows(increment, table, ids, scale, GAIN, EPS),
        leaves,
    )


def test_the_library_s_ops_give_the_same():
    from retoken import ops

    m, table, scale = draw(torch.bfloat16, increment=(7, 100), table=(V, 100), scale=(100,)).values()
    ids = repeated(7)
    close(
        "gate", ops.gate(m, table[ids], scale, GAIN, EPS).double(), gate_rows(m, table, ids, scale, GAIN, EPS)
    )


needs_a_gpu = pytest.mark.skipif(INTERPRETED, reason="needs a GPU")


@needs_a_gpu
@pytest.mark.parametrize("width", [768, 1536, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_and_sums_that_repeat(width, dtype):
    """8192 tokens, several a program; gradients of the scale and the increment are the same each time."""
    ids, chosen = repeated(8192), choices(8192, 4, 2)
    shapes = {"increment": (8192, width), "scale": (width,)}
    found = []
    for _ in range(2):
        gated = draw(dtype, **shapes, table=(V, width))
        gate_rows(
            gated["increment"], gated["table"], ids, gated["scale"], GAIN, EPS
        ).float().square().sum().backward()
        mixed = draw(dtype, **shapes, table=(V, 4, width), weights=(8192, 2))
        out = mix_rows_into(
            mixed["increment"], mixed["table"], ids, chosen, mixed["weights"], mixed["scale"], GAIN, EPS
        )
        out.float().square().sum().backward()
        found.append([each[name].grad for each in (gated, mixed) for name in ("increment", "scale")])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
    leaves = {name: leaf.detach().double().requires_grad_() for name, leaf in gated.items()}
    naive_gate(ids)(**leaves).to(dtype).float().square().sum().backward()
    reference, got = leaves["scale"].grad, gated["scale"].grad.double()
    assert (reference - got).norm() <= (1e-5 if dtype == torch.float32 else 1e-2) * reference.norm()


@needs_a_gpu
def test_rows_past_two_to_the_31_elements():
    """Addresses are 64-bit: the last rows of a table of 4.4 GB are its own."""
    rows, width, few = (1 << 31) // 2048 + 1000, 2048, torch.arange(7, device=DEVICE)
    if torch.cuda.mem_get_info()[0] < 6 << 30:
        pytest.skip("needs 6 GiB")
    table = torch.zeros(rows, width, dtype=torch.bfloat16, device=DEVICE)
    table[-7:] = torch.randn(7, width, device=DEVICE).bfloat16()
    m, scale = torch.randn(7, width, device=DEVICE).bfloat16(), torch.randn(width, device=DEVICE)
    with torch.no_grad():
        out = gate_rows(m, table, few + (rows - 7), scale, GAIN, EPS)
        close("gate", naive_gate(few)(m.double(), table[-7:].double(), scale.double()), out)
        halves = table.view(rows // 2, 2, width)
        first = torch.zeros_like(few)
        out = folded_row_into(m, halves, first + (rows // 2 - 1), first + 1)
        close("row", m.double() + table[-1].double(), out)
