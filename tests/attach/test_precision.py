"""In bf16 models and under autocast, norm, router and gate are computed in float32."""

import pytest
import torch

import retoken
from retoken.ops import naive
from retoken.testing import WIDTH, assert_close, randomize, tiny_model, token_ids


def _bf16(config):
    model = retoken.attach(tiny_model("llama", dtype=torch.bfloat16), config)
    randomize(model.retoken)
    return model


def _hidden(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).bfloat16()


def _wide(module):
    return {k: v.detach().float() for k, v in module.named_parameters()}


def test_gate_equals_float32_arithmetic_on_the_same_bf16_numbers(configs):
    """One rounding, at the end: half a unit in the last place of each element."""
    config = configs["retoken"]
    module, ids = retoken.modulators(_bf16(config))[0], token_ids()
    part, m = _wide(module), _hidden(2, 7, WIDTH)
    p = naive.retoken_gate(part["table.weight"], part["scale"], ids, config.norm, config.eps)
    expected = naive.retoken_increment(m.float(), p)
    out = module(m, ids)
    assert out.dtype == torch.bfloat16
    wrong = (out != expected.bfloat16()).float().mean()
    assert wrong < 0.01, "more than the rare tie between float32 results is rounded otherwise"


@pytest.mark.parametrize("kind", ["mort", "mort-block_input"])
def test_mixture_equals_float32_arithmetic_on_the_same_bf16_numbers(kind, configs):
    config = configs[kind]
    module, ids = retoken.modulators(_bf16(config))[0], token_ids(1, 64)
    part, h = _wide(module), _hidden(1, 64, WIDTH)
    landing, routing = module(h, ids)
    residual = landing.tensor()
    g = naive.mort_logits(h.float()[0], part["router.weight"].T)
    chosen, weights = naive.mort_weights(g, config.top_k)
    assert torch.equal(routing.chosen_TK[0], chosen)
    mixed = naive.mort_mix(part["table.weight"], ids[0], chosen, weights)
    expected = naive.mort_residual(mixed, part["scale"], 3, config.norm, config.eps)
    assert residual.dtype == routing.logits_TE.dtype == torch.float32
    assert_close("logits", g, routing.logits_TE[0])
    assert_close("residual", expected, residual[0])
    in_bf16 = (h[0] @ module.router.weight.T).float()
    assert (in_bf16 - g).abs().max() > 1e-3, "the comparison could not have seen bf16 arithmetic"


def test_the_block_input_norm_reads_bf16_states_in_float32(configs):
    """The router's input is the state normalised in float32, not a bf16 norm of it."""
    model, ids = _bf16(configs["mort-block_input"]), token_ids()
    seen = []
    retoken.modulators(model)[0].register_forward_hook(lambda m, args, out: seen.append(args[0]))
    model(input_ids=ids)
    embedded = model.model.embed_tokens(ids).float()
    assert_close("normalised", embedded / (embedded.square().mean(-1, keepdim=True) + 1e-6).sqrt(), seen[0])


def test_the_sum_of_increment_and_residual_is_rounded_once(configs):
    model = _bf16(configs["mort"])
    mlp_out, added, residual = [], [], []
    mlp = model.model.layers[0].mlp
    add = mlp.retoken_behind

    def keep(*args):
        added.append(add(*args))
        return added[-1]

    mlp.retoken_behind = keep
    mlp.register_forward_hook(lambda m, args, out: mlp_out.append(out))
    retoken.modulators(model)[0].register_forward_hook(lambda m, args, out: residual.append(out[0].tensor()))
    model(input_ids=token_ids())
    assert torch.equal(added[0], (mlp_out[0].float() + residual[0]).bfloat16())


def test_autocast_leaves_the_modulators_in_float32(main_config):
    """Given the same states, a modulator computes the same under autocast."""
    model = retoken.attach(tiny_model("llama"), main_config)
    randomize(model.retoken)
    module, ids, h = retoken.modulators(model)[0], token_ids(), torch.randn(2, 7, WIDTH)
    outside = module(h, ids)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(h, ids)
    if not isinstance(outside, torch.Tensor):
        outside, inside = (landing.tensor() for landing, _ in (outside, inside))
    assert torch.equal(outside, inside) and outside.dtype == inside.dtype


def test_training_under_autocast(main_config):
    model = retoken.attach(tiny_model("llama"), main_config).train()
    randomize(model.retoken)
    ids = token_ids()
    exact = model(input_ids=ids, labels=ids).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    # bf16 has 8 bits: three layers of products off by 2^-8 each move this loss by a few of those.
    assert abs(loss.item() - exact.item()) < 16 * 2**-8
    for name, parameter in model.retoken.named_parameters():
        assert parameter.grad.dtype == torch.float32 and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_balance_loss_is_float32_in_a_bf16_model(configs):
    model = _bf16(configs["mort"])
    model(input_ids=token_ids())
    assert retoken.balance_loss(model).dtype == torch.float32
