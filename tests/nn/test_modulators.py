"""The modules against the equations, without a backbone."""

import copy
import math

import pytest
import torch

import retoken
from retoken.errors import AttachError
from retoken.nn import ForwardContext, ModulatorStack, MoRT, ReToken, TokenTable
from retoken.ops import naive
from retoken.testing import assert_close, randomize

V, D, DEPTH, E, K = 131, 33, 4, 5, 3
IDS = torch.randint(0, V, (2, 7), generator=torch.Generator().manual_seed(0))


def _retoken(**options):
    module = ReToken(retoken.ReTokenConfig(**options), V, D)
    randomize(module)
    return module


def _mort(**options):
    config = retoken.MoRTConfig(num_modulators=E, top_k=K, **options)
    module = MoRT(config, V, D, DEPTH)
    randomize(module)
    return module


def _states():
    return torch.randn(2, 7, D, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", ["l2", "rms"])
def test_retoken(norm):
    module, m = _retoken(norm=norm, eps=1e-3), _states()
    p = naive.retoken_gate(module.table.weight, module.scale, IDS, norm, 1e-3)
    assert_close("Eq. 1-2", naive.retoken_increment(m, p), module(m, IDS))


@pytest.mark.parametrize("norm", ["l2", "rms"])
def test_mort(norm):
    module, h = _mort(norm=norm, eps=1e-3), _states()
    landing, routing = module(h, IDS)
    residual = landing.tensor()
    g = naive.mort_logits(h.flatten(0, 1), module.router.weight.T)
    chosen, weights = naive.mort_weights(g, K)
    mixed = naive.mort_mix(module.table.weight, IDS.flatten(), chosen, weights)
    expected = naive.mort_residual(mixed, module.scale, DEPTH, norm, 1e-3)
    assert_close("Eq. 3-5", expected, residual.flatten(0, 1))
    assert torch.equal(routing.chosen_TK.flatten(0, 1), chosen)
    assert_close("weights", weights, routing.weights_TK.flatten(0, 1))


def test_the_depth_scales_the_residual():
    """1 / sqrt(2 N_l): with an rms norm and a scale of one, each element of r is of that size."""
    module = _mort(norm="rms")
    torch.nn.init.ones_(module.scale)
    residual = module(_states(), IDS)[0].tensor()
    size = residual.square().mean(-1).sqrt()
    assert_close("size", torch.full_like(size, 1 / math.sqrt(2 * DEPTH)), size)


def test_a_zero_scale_modulates_nothing():
    module, m = _retoken(), _states()
    torch.nn.init.zeros_(module.scale)
    assert torch.equal(module(m, IDS), m)
    module = _mort()
    torch.nn.init.zeros_(module.scale)
    assert not module(m, IDS)[0].tensor().any()


@pytest.mark.parametrize("make", [_retoken, _mort])
def test_only_looked_up_rows_have_gradients(make):
    module = make()
    out = module(_states(), IDS)
    (out if isinstance(out, torch.Tensor) else out[0].tensor()).square().sum().backward()
    touched = module.table.weight.grad.flatten(1).abs().sum(1) > 0
    assert torch.equal(touched.nonzero().flatten(), IDS.unique())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_mixing_chosen_rows(dtype):
    """Row by row and weight by weight, in float32 for a narrower table."""
    table = TokenTable((V, E, D), 0.02, None, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    chosen, weights = torch.randint(0, E, (2, 7, K)), torch.rand(2, 7, K, dtype=wide)
    mixed = table.mix(IDS, chosen, weights)
    assert mixed.dtype == wide
    for b, s in [(0, 0), (1, 6), (0, 3)]:
        rows = [table.weight[IDS[b, s], chosen[b, s, k]].to(wide) for k in range(K)]
        expected = sum(weights[b, s, k] * rows[k] for k in range(K))
        assert_close(f"token {b}, {s}", expected, mixed[b, s], units=4)
    assert torch.equal(table.lookup(IDS), table.weight[IDS])


def test_resizing_a_table():
    table = TokenTable((V, E, D), 0.02, None, None)
    before = table.weight.detach().clone()
    table.resize(V + 3)
    assert table.vocab_size == V + 3 and torch.equal(table.weight[:V], before) and not table.weight[V:].any()
    table.resize(5)
    assert torch.equal(table.weight, before[:5])


def test_start_values():
    torch.manual_seed(0)
    module = MoRT(retoken.MoRTConfig(init_scale=0.5, init_std=0.1), V, D, DEPTH)
    assert torch.equal(module.scale, torch.full((D,), 0.5))
    assert module.table.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert module.table.weight.mean().abs() < 0.01
    assert module.router.weight.std().item() == pytest.approx(0.02, rel=0.3)


@pytest.mark.parametrize(
    "config", [retoken.ReTokenConfig(layers=(0, 2)), retoken.MoRTConfig(injection_delay=1)]
)
def test_parameter_counts_are_the_configs_arithmetic(config):
    make = ReToken if isinstance(config, retoken.ReTokenConfig) else MoRT
    depth = () if make is ReToken else (DEPTH,)
    stack = ModulatorStack(config, {i: make(config, V, D, *depth) for i in config.table_layers(DEPTH)})
    count = sum(p.numel() for p in stack.parameters())
    assert count == config.table_params(V, D, DEPTH) + config.other_params(D, DEPTH)


def test_checkpoint_names_load_too():
    """`….table` and `….router`, as in the files, beside `….table.weight` and `….router.weight`."""
    module, other = _mort(), _mort()
    randomize(other, seed=7)
    state = {k.removesuffix(".weight"): v for k, v in other.state_dict().items()}
    assert set(state) == {"table", "scale", "router"}
    module.load_state_dict(state)
    assert all(torch.equal(v, module.state_dict()[k]) for k, v in other.state_dict().items())


def test_the_context_refuses_other_positions():
    context = ForwardContext(IDS)
    assert context.index_for(torch.zeros(2, 7, D)) is IDS
    with pytest.raises(AttachError, match=r"shape \(2, 8, 33\) do not match input_ids of shape \(2, 7\)"):
        context.index_for(torch.zeros(2, 8, D))


def test_a_delayed_residual_is_not_overwritten_by_its_recomputation():
    context, real = ForwardContext(IDS), torch.zeros(1, requires_grad=True) * 2
    without_path = torch.zeros(1)
    context.leave(0, without_path)
    context.leave(0, real)
    context.leave(0, torch.ones(1, requires_grad=True) * 2)
    context.leave(0, torch.ones(1))
    assert context.delayed[0] is real


def test_copies_of_a_stack_forget_the_last_pass():
    config = retoken.MoRTConfig()
    stack = ModulatorStack(config, {0: MoRT(config, V, D, 1)})
    _, routing = stack.layers["0"](_states(), IDS)
    stack.begin(IDS, None)
    stack.finish({0: routing})
    assert stack.balance_loss() > 0
    twin = copy.deepcopy(stack)
    assert twin.routings is None and torch.equal(twin.layers["0"].scale, stack.layers["0"].scale)
    with pytest.raises(AttachError, match="none has run"):
        twin.balance_loss()
