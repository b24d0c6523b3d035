"""Every family against the equations on a plain backbone, and the ways back to that backbone."""

import copy

import pytest
import torch

import retoken
from retoken.attach.families import FAMILIES
from retoken.testing import VOCAB, assert_close, assert_grads_close, randomize, tiny_model, token_ids

# Norms inside the backbones round to float32 even in a float64 model, so 1e-7 is the finest that two ways of
# computing the same state agree to; three layers and their gradients widen it. A wrong place shows at 1e-1.
CLOSE = {"units": 256, "rounding": torch.float32}

every_family = pytest.mark.parametrize("family", FAMILIES)


def _attached(family, config, dtype=torch.float64, scale=None):
    """A plain backbone, and its attached copy with random modulators."""
    plain = tiny_model(family, dtype=dtype)
    model = retoken.attach(copy.deepcopy(plain), config)
    randomize(model.retoken)
    if scale is not None:
        for module in retoken.modulators(model).values():
            torch.nn.init.constant_(module.scale, scale)
    return plain, model


@every_family
def test_equals_the_equations_in_outputs_and_gradients(family, config, reference):
    plain, model = _attached(family, config)
    expected = reference(plain, config, model)
    ids = token_ids()
    ref, out = expected(ids).logits, model(input_ids=ids, use_cache=False).logits
    assert_close("logits", ref, out, **CLOSE)
    assert not torch.allclose(plain(input_ids=ids).logits, out, atol=1e-2)

    weights = torch.randn(ref.shape, generator=torch.Generator().manual_seed(5)).double()
    (ref * weights).sum().backward()
    (out * weights).sum().backward()
    assert_grads_close(expected.backbone, model, **CLOSE)
    for layer, module in retoken.modulators(model).items():
        for name, leaf in expected.parts[layer].items():
            grad = dict(module.named_parameters())[name].grad
            assert_close(f"gradient of layer {layer} {name}", leaf.grad, grad, **CLOSE)


@every_family
def test_scale_zero_gives_the_backbone_bit_for_bit(family, main_config):
    for dtype in (torch.float32, torch.bfloat16):
        plain, model = _attached(family, main_config, dtype=dtype, scale=0.0)
        ids = token_ids()
        assert torch.equal(plain(input_ids=ids).logits, model(input_ids=ids).logits), dtype


@every_family
def test_detach_gives_the_backbone_back(family, main_config):
    plain, model = _attached(family, main_config, dtype=torch.float32)
    ids = token_ids()
    model(input_ids=ids)
    assert retoken.detach(model) is model
    assert type(model) is type(plain) and type(model.config) is type(plain.config)
    assert model.config.to_dict() == plain.config.to_dict()
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    theirs = model.state_dict()
    assert theirs.keys() == plain.state_dict().keys()
    assert all(torch.equal(v, theirs[k]) for k, v in plain.state_dict().items())
    assert torch.equal(plain(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not any("retoken" in name for m in model.modules() for name in vars(m))


@every_family
def test_cached_decode_equals_the_full_forward(family, main_config):
    _, model = _attached(family, main_config)
    ids = token_ids(2, 9)
    with torch.no_grad():
        full = model(input_ids=ids).logits
        prefill = model(input_ids=ids[:, :4], use_cache=True)
        steps, cache = [prefill.logits], prefill.past_key_values
        for at in (slice(4, 5), slice(5, 8), slice(8, 9)):
            out = model(input_ids=ids[:, at], past_key_values=cache, use_cache=True)
            steps.append(out.logits)
            cache = out.past_key_values
    assert_close("logits", full, torch.cat(steps, 1), **CLOSE)


@every_family
def test_parameter_count_is_the_configs_arithmetic(family, main_config):
    plain, model = _attached(family, main_config, dtype=torch.float32)
    width, depth = plain.config.hidden_size, plain.config.num_hidden_layers
    extra = main_config.table_params(VOCAB, width, depth) + main_config.other_params(width, depth)
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters()) == extra


@pytest.mark.parametrize("family", ["phi3", "gpt_neox"])
def test_a_residual_is_added_behind_the_familys_dropout(family, configs):
    """With everything else of a block silenced, dropout finds nothing to drop."""
    rates = {"resid_pdrop": 0.5} if family == "phi3" else {"hidden_dropout": 0.5}
    model = retoken.attach(tiny_model(family, **rates), configs["mort"])
    randomize(model.retoken)
    for layer in model.base_model.layers:
        for block in (layer.mlp, getattr(layer, "self_attn", None) or layer.attention):
            for parameter in block.parameters():
                torch.nn.init.zeros_(parameter)
    if family == "gpt_neox":
        model.base_model.emb_dropout.p = 0.0
    ids = token_ids()
    still = model(input_ids=ids).logits
    assert torch.equal(model.train()(input_ids=ids).logits, still)
