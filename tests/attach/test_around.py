"""What modulators do to a block is done around its MLP's call, whatever happens inside."""

import copy

import pytest
import torch

import retoken
from retoken.testing import randomize, tiny_model, token_ids

KINDS = {
    "retoken": retoken.ReTokenConfig(),
    "mort": retoken.MoRTConfig(),
    "mort-delay": retoken.MoRTConfig(injection_delay=1),
}


@pytest.fixture(params=KINDS)
def model(request):
    attached = retoken.attach(tiny_model("llama"), KINDS[request.param]).eval()
    randomize(attached.retoken)
    return attached


def test_a_forward_that_was_replaced_is_modulated_too(model):
    """Kernels of others (Liger, the hub's) are put on instances, in place of what their class says."""
    wanted, calls = model(token_ids()).logits, []
    for layer in model.model.layers:
        mlp, own = layer.mlp, layer.mlp.forward
        mlp.forward = lambda x, own=own: calls.append(1) or own(x)
    assert torch.equal(model(token_ids()).logits, wanted)
    assert len(calls) == len(model.model.layers)


def test_a_hook_sees_the_mlp_and_is_modulated_behind(model):
    wanted, seen, mlp = model(token_ids()), [], model.model.layers[0].mlp
    mlp.register_forward_hook(lambda _, args, output: seen.append((args[0], output)))
    assert torch.equal(model(token_ids()).logits, wanted.logits)
    (given, found) = seen[0]
    assert torch.equal(found, mlp.down_proj(mlp.act_fn(mlp.gate_proj(given)) * mlp.up_proj(given)))
    mlp.register_forward_hook(lambda _, args, output: 0 * output)
    assert not torch.equal(model(token_ids()).logits, wanted.logits)


def test_a_compiled_mlp_is_modulated_too(model):
    wanted = model(token_ids()).logits
    for layer in model.model.layers:
        layer.mlp.compile(backend="eager")
    assert torch.equal(model(token_ids()).logits, wanted)


def test_a_module_is_of_its_own_class_when_the_last_act_is_gone(model):
    mlp, plain = model.model.layers[1].mlp, tiny_model("llama").model.layers[1].mlp
    assert type(mlp) is not type(plain) and type(mlp).__name__ == type(plain).__name__
    retoken.detach(model)
    assert type(mlp) is type(plain) and vars(mlp).keys() == vars(plain).keys()


def test_a_copy_is_detached_by_itself(model):
    wanted, twin = model(token_ids()).logits, copy.deepcopy(model)
    assert torch.equal(twin(token_ids()).logits, wanted)
    retoken.detach(twin)
    assert not torch.equal(twin(token_ids()).logits, wanted)
    assert torch.equal(model(token_ids()).logits, wanted)
