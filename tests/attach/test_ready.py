"""What is put together before a pass changes no answer, and steps aside for modules with hooks."""

import pytest
import torch

import retoken
from retoken.errors import AttachError
from retoken.nn import ModulatorStack
from retoken.nn.context import NOT_READY
from retoken.testing import DEPTH, randomize, tiny_model, token_ids

KINDS = ["retoken", "retoken-some", "mort", "mort-block", "mort-delay"]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def _model(config):
    model = retoken.attach(tiny_model("llama"), config).eval()
    randomize(model.retoken)
    return model


def _configs():
    return {
        "retoken": retoken.ReTokenConfig(),
        "retoken-some": retoken.ReTokenConfig(layers=[1]),
        "mort": retoken.MoRTConfig(),
        "mort-block": retoken.MoRTConfig(router_input="block_input"),
        "mort-delay": retoken.MoRTConfig(injection_delay=1),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_as_modules_give(kind, folded, dtype, monkeypatch):
    model = _model(_configs()[kind]).to(dtype)
    if folded:
        retoken.fold(model)
    ids = token_ids()
    assert set(model.retoken.ready(ids, None).layers) == {int(layer) for layer in model.retoken.layers}
    ready = model(ids)
    routings = model.retoken.routings
    monkeypatch.setattr(ModulatorStack, "ready", lambda *_: NOT_READY)
    assert torch.equal(model(ids).logits, ready.logits)
    for layer, routing in model.retoken.routings.items():
        assert all(torch.equal(a, b) for a, b in zip(routing, routings[layer], strict=True))


@pytest.mark.parametrize("kind", ["retoken", "mort"])
def test_a_hook_on_a_modulator_is_called(kind):
    model, ids, seen = _model(_configs()[kind]), token_ids(), []
    before = model(ids).logits
    for module in model.retoken.layers.values():
        module.register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(model(ids).logits, before)
    assert len(seen) == DEPTH
    model.retoken.layers["0"].forward = lambda hidden, *_: hidden * 0 if kind == "retoken" else 1 / 0
    if kind == "retoken":
        assert not torch.equal(model(ids).logits, before)
    else:
        with pytest.raises(ZeroDivisionError):
            model(ids)


def test_parameters_may_change_between_passes():
    model, ids = _model(_configs()["retoken"]), token_ids()
    before = model(ids).logits
    module = model.retoken.layers["0"]
    module.scale = torch.nn.Parameter(module.scale * 2)
    assert not torch.equal(model(ids).logits, before)
    module.scale = torch.nn.Parameter(module.scale / 2)
    assert torch.equal(model(ids).logits, before)


def test_a_layer_on_its_own_does_not_use_what_a_pass_left():
    model, ids = _model(_configs()["retoken"]), token_ids()
    model(ids)
    hidden = torch.zeros(*ids.shape, model.config.hidden_size)
    with pytest.raises(AttachError, match="without its model"):
        model.model.layers[0].mlp(hidden)


def test_gradients_are_not_made_ready():
    model, ids = _model(_configs()["mort"]), token_ids()
    with torch.enable_grad():
        assert not model.retoken.ready(ids, None).layers
        model(ids, labels=ids).loss.backward()
    assert all(module.table.weight.grad is not None for module in model.retoken.layers.values())
