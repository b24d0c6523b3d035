"""Rows gathered once and row-sparse gradients give what dense tables give."""

import copy

import pytest
import torch

import retoken
from retoken.rows import train_by_rows
from retoken.testing import VOCAB, assert_close, randomize, tiny_model, token_ids

CONFIGS = {
    "retoken": retoken.ReTokenConfig(),
    "mort": retoken.MoRTConfig(),
    "mort, block input, delay": retoken.MoRTConfig(router_input="block_input", injection_delay=1),
}


def pair(config, **overrides):
    dense = retoken.attach(tiny_model("llama", **overrides), config).train()
    randomize(dense.retoken)
    rows = copy.deepcopy(dense)
    train_by_rows(rows.retoken)
    return dense, rows


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_equal_dense_ones(name, checkpointing):
    dense, rows = pair(CONFIGS[name])
    batches = [token_ids(seed=1), token_ids(seed=2)]
    for model in (dense, rows):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        # two forwards before the backwards, as one step of two micro-batches
        losses = [model(input_ids=ids, labels=ids).loss for ids in batches]
        sum(losses).backward()
        model.losses = torch.stack([loss.detach() for loss in losses])
    assert torch.equal(dense.losses, rows.losses)
    touched = torch.cat([ids.flatten() for ids in batches]).unique()
    theirs = dict(rows.named_parameters())
    for key, parameter in dense.named_parameters():
        grad = theirs[key].grad
        if key.endswith("table.weight"):
            assert grad.is_sparse and grad.is_coalesced()
            assert torch.equal(grad.indices()[0], touched)
            grad = grad.to_dense()
        assert_close(key, parameter.grad, grad)


def test_no_gradient_of_the_tables_size_is_made():
    _, rows = pair(CONFIGS["mort"])
    ids = token_ids()
    rows(input_ids=ids, labels=ids).loss.backward()
    for layer in retoken.modulators(rows).values():
        values = layer.table.weight.grad.values()
        assert values.shape[0] == ids.unique().numel() < VOCAB


def test_without_gradients_layers_look_up_themselves():
    dense, rows = pair(CONFIGS["mort"])
    with torch.no_grad():
        assert rows.retoken.fetch(token_ids()) is None
        a, b = (m(input_ids=token_ids()).logits for m in (dense, rows))
    assert torch.equal(a, b)


def test_a_copy_of_the_model_fetches_from_its_own_tables():
    _, rows = pair(CONFIGS["retoken"])
    twin = copy.deepcopy(rows)
    with torch.no_grad():
        for module in retoken.modulators(twin).values():
            module.table.weight.zero_()
    ids = token_ids()
    assert not torch.equal(rows(input_ids=ids).logits, twin(input_ids=ids).logits)
    twin(input_ids=ids, labels=ids).loss.backward()
    assert all(m.table.weight.grad is None for m in retoken.modulators(rows).values())


def test_rows_about_to_be_read_are_told():
    _, rows = pair(CONFIGS["retoken"])
    told = []
    rows.retoken.source.before_read.append(lambda weight, ids: told.append((weight, ids)))
    ids = token_ids()
    rows(input_ids=ids, labels=ids)
    with torch.no_grad():
        rows(input_ids=ids)
    layers = retoken.modulators(rows)
    assert len(told) == 2 * len(layers)
    assert all(torch.equal(seen, ids.unique()) for _, seen in told)


def test_a_compiled_model_fetches_too():
    dense, rows = pair(CONFIGS["mort"])
    compiled = torch.compile(rows, backend="aot_eager")
    for seed in (1, 2, 3):
        ids = token_ids(seed=seed)
        for model in (dense, compiled):
            model(input_ids=ids, labels=ids).loss.backward()
    for key, parameter in dense.named_parameters():
        grad = dict(rows.named_parameters())[key].grad
        assert_close(key, parameter.grad, grad.to_dense() if grad.is_sparse else grad, units=64)
