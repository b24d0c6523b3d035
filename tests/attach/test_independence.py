"""Attaching touches one instance: neither its class, nor its neighbours, nor the config they share."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaForCausalLM

import retoken
from retoken.testing import randomize, tiny_config, tiny_model, token_ids


def _attached(config, seed=0, modulators=1):
    model = retoken.attach(tiny_model("llama", seed=seed), config)
    randomize(model.retoken, seed=modulators)
    return model


def test_two_attached_models_in_turn(configs):
    """Forward passes of two models interleaved, with and without gradients, equal each alone."""
    ids, other = token_ids(seed=1), token_ids(3, 5, seed=2)
    makers = [lambda: _attached(configs["retoken"]), lambda: _attached(configs["mort-delay"], modulators=2)]
    alone = []
    for make in makers:
        model = make()
        model(input_ids=ids, labels=ids).loss.backward()
        alone.append({k: p.grad for k, p in model.named_parameters()})
    together = [make() for make in makers]
    losses = [model(input_ids=ids, labels=ids).loss for model in together]
    with torch.no_grad():
        for model in together:
            model(input_ids=other)
    for loss in losses:
        loss.backward()
    for model, expected in zip(together, alone, strict=True):
        assert all(
            torch.equal(p.grad, expected[k]) for k, p in model.named_parameters() if p.grad is not None
        )


def test_plain_models_of_the_family_are_not_touched(configs):
    plain, ids = tiny_model("llama"), token_ids()
    before = plain(input_ids=ids).logits
    _attached(configs["retoken"])
    assert type(plain) is LlamaForCausalLM and type(plain.model.layers[0]) is LlamaDecoderLayer
    assert torch.equal(plain(input_ids=ids).logits, before)
    assert torch.equal(tiny_model("llama")(input_ids=ids).logits, before)


@pytest.mark.parametrize("kind", ["retoken", "mort", "mort-block_input-delay-subset"])
@pytest.mark.parametrize("when", ["fresh", "after training", "after inference"])
def test_a_deep_copy_is_independent(kind, when, configs):
    model, ids = _attached(configs[kind]), token_ids()
    if when == "after training":
        model.train()(input_ids=ids, labels=ids).loss.backward()
        model.eval().zero_grad()
    elif when == "after inference":
        model.generate(input_ids=ids, max_new_tokens=2, do_sample=False)
    before = model(input_ids=ids).logits
    twin = copy.deepcopy(model)
    assert torch.equal(twin(input_ids=ids).logits, before)
    randomize(twin.retoken, seed=9)
    assert not torch.equal(twin(input_ids=ids).logits, before)
    assert torch.equal(model(input_ids=ids).logits, before)
    twin(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is None for p in model.parameters())
    retoken.detach(twin)
    assert type(twin) is LlamaForCausalLM
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_deep_copy_of_one_layer_does_not_copy_the_model(configs):
    model = _attached(configs["retoken"])
    numel = sum(p.numel() for p in copy.deepcopy(model.model.layers[0]).parameters())
    assert numel == sum(p.numel() for p in model.model.layers[0].parameters())


def test_two_models_from_one_config_object(configs):
    shared = tiny_config("llama")
    first, second = LlamaForCausalLM(shared), LlamaForCausalLM(shared)
    assert first.config is second.config is shared
    retoken.attach(first, configs["retoken"])
    assert not hasattr(second, "retoken") and not hasattr(shared, "retoken")
    retoken.attach(second, configs["mort"])
    assert first.config.retoken["modulator"]["type"] == "retoken"
    assert second.config.retoken["modulator"]["type"] == "mort"
    retoken.detach(first)
    assert second(input_ids=token_ids()).logits.isfinite().all()


def test_the_config_given_to_attach_may_be_used_again(configs):
    config = configs["mort"]
    first, second = _attached(config), _attached(config, modulators=2)
    assert retoken.config_from_dict(first.config.retoken["modulator"]) == config
    assert not torch.equal(first(input_ids=token_ids()).logits, second(input_ids=token_ids()).logits)


def test_attach_again_after_detach(configs):
    model = _attached(configs["mort-delay"])
    retoken.attach(retoken.detach(model), configs["retoken"])
    randomize(model.retoken)
    ids = token_ids()
    assert torch.equal(model(input_ids=ids).logits, _attached(configs["retoken"])(input_ids=ids).logits)


def test_training_mode_device_and_dtype_follow_the_backbone(configs):
    model = retoken.attach(tiny_model("llama", dtype=torch.bfloat16).train(), configs["mort"])
    assert all(m.training for m in model.retoken.modules())
    assert {p.dtype for p in model.retoken.parameters()} == {torch.bfloat16}
    assert not retoken.attach(tiny_model("llama").eval(), configs["mort"]).retoken.training
    with torch.device("meta"):
        meta = retoken.attach(AutoModelForCausalLM.from_config(tiny_config("llama")), configs["mort"])
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert meta(input_ids=torch.zeros(1, 4, dtype=torch.long, device="meta")).logits.shape == (1, 4, 131)
