"""The ops that models run against the paper's equations: outputs, and the gradient of every input."""

import math

import pytest
import torch

from retoken import ops
from retoken.ops import naive
from retoken.ops.norm import norm_gain
from retoken.testing import assert_close

T, D, V, E, K, DEPTH, EPS = 7, 33, 131, 5, 3, 4, 1e-6
NORMS = ["l2", "rms"]
DTYPES = [torch.float64, torch.float32]


@pytest.fixture
def x():
    return torch.randint(0, V, (T,), generator=torch.Generator().manual_seed(3))


def _leaves(dtype, **shapes):
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for k, s in shapes.items()}


def _run(function, leaves):
    """The output of `function` and its gradients, from fresh copies of `leaves`."""
    leaves = {k: v.clone().requires_grad_() for k, v in leaves.items()}
    out = function(**leaves)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(out.dtype))
    return out, {k: v.grad for k, v in leaves.items()}


def _compare(reference, fast, leaves, units=32):
    ref, ref_grads = _run(reference, leaves)
    out, grads = _run(fast, leaves)
    assert out.dtype == ref.dtype
    assert_close("output", ref, out, units=units)
    for name, grad in ref_grads.items():
        assert_close(f"gradient of {name}", grad, grads[name], units=units, floor=1.0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_normalize(norm, dtype):
    leaves = _leaves(dtype, u=(T, D))
    gain = norm_gain(norm, D)
    _compare(lambda u: naive.NORMS[norm](u, EPS), lambda u: ops.normalize(u, gain, EPS), leaves)


def test_the_two_norms_differ_by_the_square_root_of_the_width():
    u = _leaves(torch.float64, u=(T, D))["u"]
    assert_close("rms", math.sqrt(D) * naive.norm_l2(u, EPS), ops.normalize(u, norm_gain("rms", D), EPS))
    assert_close("mean square", torch.ones(T).double(), naive.norm_rms(u, 0.0).square().mean(-1))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(norm, dtype, x):
    def reference(m, table, s):
        return naive.retoken_increment(m, naive.retoken_gate(table, s, x, norm, EPS))

    def fast(m, table, s):
        return ops.gate(m, torch.nn.functional.embedding(x, table), s, norm_gain(norm, D), EPS)

    _compare(reference, fast, _leaves(dtype, m=(T, D), table=(V, D), s=(D,)))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [1, K, E])
def test_route_and_mix(norm, dtype, k, x):
    def reference(h, router, table, s):
        chosen, weights = naive.mort_weights(naive.mort_logits(h, router.T), k)
        return naive.mort_residual(naive.mort_mix(table, x, chosen, weights), s, DEPTH, norm, EPS)

    def fast(h, router, table, s):
        routing = ops.route(h, router, k)
        mixed = ops.mix_rows(
            table.view(V * E, D), x.unsqueeze(-1) * E + routing.chosen_TK, routing.weights_TK
        )
        return ops.residual(mixed, s, norm_gain(norm, D) / math.sqrt(2 * DEPTH), EPS)

    # With K = 1 the weight is 1 whatever the logit: the router's gradient is rounding of 0 on both sides.
    leaves = _leaves(dtype, h=(T, D), router=(E, D), table=(V, E, D), s=(D,))
    _compare(reference, fast, leaves, units=64)


@pytest.mark.parametrize("norm", NORMS)
def test_a_zero_row_is_neutral_and_its_gradient_is_gain_over_eps(norm):
    m, s = torch.randn(T, D), torch.randn(D)
    rows = torch.zeros(T, D, requires_grad=True)
    gain = norm_gain(norm, D)
    out = ops.gate(m, rows, s, gain, EPS)
    assert torch.equal(out, m)
    out.sum().backward()
    assert_close("gradient at zero", m * s * gain / EPS, rows.grad)
    naive_rows = torch.zeros(T, D, requires_grad=True)
    (m * (1 + s * naive.NORMS[norm](naive_rows, EPS))).sum().backward()
    assert_close("naive gradient at zero", naive_rows.grad, rows.grad)


def test_a_zero_mix_adds_nothing():
    assert torch.equal(ops.residual(torch.zeros(T, D), torch.randn(D), 1.0, EPS), torch.zeros(T, D))


def test_scale_zero_returns_the_increment_bit_for_bit():
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        m = torch.randn(T, D, dtype=torch.float64).to(dtype)
        assert torch.equal(ops.gate(m, torch.randn(T, D), torch.zeros(D), 1.0, EPS), m), dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types_are_computed_in_float32_and_rounded_once(dtype, x):
    m, table, s = (v.to(dtype) for v in _leaves(torch.float32, m=(T, D), table=(V, D), s=(D,)).values())
    wide = naive.retoken_increment(m.float(), naive.retoken_gate(table.float(), s.float(), x, "rms", EPS))
    out = ops.gate(m, table[x], s, norm_gain("rms", D), EPS)
    assert out.dtype == dtype
    assert_close("gate", wide, out, units=0.51)


def test_the_router_sees_differences_a_bf16_product_would_lose():
    hidden = torch.tensor([[1.0, 2.0**-9]]).bfloat16()
    router = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).bfloat16()
    routing = ops.route(hidden, router, 1)
    assert routing.logits_TE.dtype == torch.float32
    assert routing.logits_TE[0, 0] > routing.logits_TE[0, 1]
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = ops.route(hidden, router, 1)
    assert torch.equal(under_autocast.logits_TE, routing.logits_TE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mix_is_float32_also_under_autocast_and_from_narrow_rows(dtype):
    table, weights = torch.randn(V * E, D).to(dtype), torch.rand(T, K)
    index = torch.randint(0, V * E, (T, K))
    expected = (table.float()[index] * weights.unsqueeze(-1)).sum(-2)
    with torch.autocast("cpu", torch.bfloat16):
        inside = ops.mix_rows(table, index, weights)
    assert inside.dtype == torch.float32
    assert_close("mix", expected, inside)


def test_block_input_norm_is_rmsnorm_without_a_gain():
    h = torch.randn(2, T, D, dtype=torch.float64)
    assert_close("rmsnorm", torch.nn.functional.rms_norm(h, (D,), eps=EPS), ops.block_input_norm(h, EPS))


def test_ops_run_on_the_meta_device():
    h, router = torch.randn(T, D, device="meta"), torch.randn(E, D, device="meta")
    routing = ops.route(h, router, K)
    mixed = ops.mix_rows(torch.randn(V, D, device="meta"), routing.chosen_TK, routing.weights_TK)
    assert ops.residual(mixed, h[0], 1.0, EPS).shape == (T, D)
    assert ops.router_load(routing.logits_TE, routing.chosen_TK).count_E.shape == (E,)
