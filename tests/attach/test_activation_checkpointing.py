"""Recomputation in the backward pass sees the ids of its own forward pass, and finds every gradient."""

import copy
import gc
import weakref

import pytest
import torch

import retoken
from retoken.errors import AttachError
from retoken.testing import assert_grads_close, randomize, tiny_model, token_ids


def _pair(config, family="llama"):
    """The same attached model twice, in training mode."""
    model = retoken.attach(tiny_model(family), config).train()
    randomize(model.retoken)
    return model, copy.deepcopy(model)


def _checkpoint(model, reentrant):
    """By its newer name where transformers has it."""
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()


def _two_forwards_then_backward(model):
    """Two passes with other ids and shapes; their losses are summed, so both graphs wait for the backward."""
    first, second = token_ids(2, 7, seed=1), token_ids(3, 5, seed=2)
    losses = [model(input_ids=ids, labels=ids).loss for ids in (first, second)]
    (losses[0] + 2 * losses[1]).backward()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "qwen3_moe"])
def test_two_forwards_before_the_backward(config, family):
    plain, checkpointed = _pair(config, family)
    _checkpoint(checkpointed, reentrant=False)
    for model in (plain, checkpointed):
        _two_forwards_then_backward(model)
    assert_grads_close(plain, checkpointed)


@pytest.mark.parametrize("kind", ["retoken", "mort", "mort-block_input"])
def test_reentrant(kind, configs):
    """Without a balance loss and without a delay nothing leaves a layer but its hidden state."""
    config = configs[kind]
    if kind != "retoken":
        config = retoken.MoRTConfig(**{**_fields(config), "balance_coef": 0.0})
    plain, checkpointed = _pair(config)
    _checkpoint(checkpointed, reentrant=True)
    for model in (plain, checkpointed):
        _two_forwards_then_backward(model)
    assert_grads_close(plain, checkpointed)


def _fields(config):
    return {k: v for k, v in config.to_dict().items() if k not in ("type", "format_version")}


@pytest.mark.parametrize(("kind", "coef"), [("mort", 0.1), ("mort-delay", 0.0)])
def test_reentrant_is_refused_where_gradients_would_be_lost(kind, coef, configs):
    config = retoken.MoRTConfig(**{**_fields(configs[kind]), "balance_coef": coef})
    model, _ = _pair(config)
    _checkpoint(model, reentrant=True)
    ids = token_ids()
    with pytest.raises(AttachError, match="use_reentrant"):
        model(input_ids=ids, labels=ids).loss.backward()


def test_the_balance_loss_alone_reaches_the_router(configs):
    plain, checkpointed = _pair(configs["mort"])
    _checkpoint(checkpointed, reentrant=False)
    for model in (plain, checkpointed):
        model(input_ids=token_ids())
        retoken.balance_loss(model).backward()
    assert plain.retoken.layers["1"].router.weight.grad.abs().max() > 0
    assert_grads_close(plain, checkpointed)


def test_a_recomputation_does_not_become_the_last_forward(configs):
    """The first pass's recomputation must not stand in for the second, whose balance loss is to come."""
    plain, checkpointed = _pair(configs["mort"])
    _checkpoint(checkpointed, reentrant=False)
    for model in (plain, checkpointed):
        first = model(input_ids=token_ids(seed=1)).logits.sum()
        model(input_ids=token_ids(seed=2))
        first.backward()
        retoken.balance_loss(model).backward()
    assert torch.equal(retoken.balance_loss(plain), retoken.balance_loss(checkpointed))
    assert_grads_close(plain, checkpointed)


@pytest.mark.parametrize(("kind", "checkpointed"), [("mort", False), ("mort", True), ("mort-delay", False)])
def test_a_pass_keeps_no_residual_once_it_is_over(kind, checkpointed, configs):
    """A residual is let go where it lands; only a delayed one is kept for the recomputation of that layer."""
    model, _ = _pair(configs[kind])
    made = []
    for module in retoken.modulators(model).values():
        module.register_forward_hook(lambda m, args, out: made.append(weakref.ref(out[0].tensor())))
    if checkpointed:
        _checkpoint(model, reentrant=False)
    logits = model(input_ids=token_ids()).logits
    del logits
    gc.collect()
    assert len(made) >= 2 and all(residual() is None for residual in made)


def test_enabled_before_attach(configs):
    """The order of attach and of enabling it does not matter."""
    plain, _ = _pair(configs["mort"])
    backbone = tiny_model("llama").train()
    _checkpoint(backbone, reentrant=False)
    checkpointed = retoken.attach(backbone, configs["mort"])
    checkpointed.load_state_dict(plain.state_dict())
    for model in (plain, checkpointed):
        _two_forwards_then_backward(model)
    assert_grads_close(plain, checkpointed)
