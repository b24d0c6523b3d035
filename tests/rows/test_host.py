"""Rows copied ahead from host memory train exactly as resident ones."""

import copy
import threading
import time

import pytest
import torch

import retoken
from retoken.rows import LocalRows, train_by_rows, train_from_host
from retoken.testing import randomize, tiny_model, token_ids

STEPS = 6


class PlainRowStep(torch.optim.SGD):
    """A step that moves the touched rows only."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    grad = parameter.grad
                    parameter.index_add_(0, grad.indices()[0], grad.values().to(parameter.dtype), alpha=-0.5)
                elif parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-0.1)


def models(config):
    resident = retoken.attach(tiny_model("llama"), config).train()
    randomize(resident.retoken)
    host = copy.deepcopy(resident)
    train_by_rows(resident.retoken)
    train_from_host(host.retoken, torch.device("cpu"))
    return resident, host


def train(model, prefetch, *, micro=2):
    optimizer = PlainRowStep(model.parameters(), lr=1)
    source = model.retoken.source
    if type(source) is not LocalRows:
        source.follow(optimizer)
    parts = [token_ids(seed=seed) for seed in range(STEPS * micro)]
    losses = []
    for index, ids in enumerate(parts):
        loss = model(input_ids=ids, labels=ids).loss
        if prefetch and index + 1 < len(parts):
            source.prefetch(parts[index + 1])
        loss.backward()
        losses.append(loss.item())
        if index % micro == micro - 1:
            optimizer.step()
            optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("config", [retoken.ReTokenConfig(), retoken.MoRTConfig()], ids=["retoken", "mort"])
@pytest.mark.parametrize("prefetch", [False, True])
def test_training_is_bit_equal_to_resident_tables(config, prefetch):
    resident, host = models(config)
    assert train(resident, False) == train(host, prefetch)
    for (name, a), b in zip(resident.named_parameters(), host.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_without_patching_it_would_not_be(monkeypatch):
    resident, host = models(retoken.ReTokenConfig())
    monkeypatch.setattr(type(host.retoken.source), "patch", lambda self: None)
    assert train(resident, False) != train(host, True)


def test_rows_by_bigrams_are_copied_ahead_by_the_ids_of_their_tokens():
    _, host = models(retoken.MoRTConfig.by_token_and_bigram(2))
    stack, ids = host.retoken, token_ids()
    stack.prefetch(ids)
    ahead = stack.source._ahead
    assert stack.fetch(stack.begin(ids, None)).arrived(0).positions is ahead.positions


def test_rows_that_are_settled_when_read_are_not_copied_ahead():
    _, host = models(retoken.ReTokenConfig())
    told = []
    host.retoken.source.before_read.append(lambda weight, ids: told.append(ids))
    host.retoken.source.prefetch(token_ids())
    assert not told
    host(input_ids=token_ids())
    assert len(told) == 3


def test_a_wrong_guess_costs_nothing_but_time():
    resident, host = models(retoken.MoRTConfig())
    ids = token_ids(seed=1)
    host.retoken.source.prefetch(token_ids(seed=2))
    a, b = (m(input_ids=ids, labels=ids).loss for m in (resident, host))
    assert torch.equal(a, b)


def test_a_wrong_guess_is_over_before_its_memory_is_used_again(monkeypatch):
    resident, host = models(retoken.ReTokenConfig())
    source, ids = host.retoken.source, token_ids(seed=1)
    settle = type(source).settle

    def slow(self, home):
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.1)
        settle(self, home)

    monkeypatch.setattr(type(source), "settle", slow)
    source.prefetch(token_ids(seed=2))
    guess = source._ahead.work
    a, b = (m(input_ids=ids, labels=ids).loss for m in (resident, host))
    assert torch.equal(a, b) and guess.done()


def test_memory_is_not_filled_again_while_it_is_copied_from():
    class Event:
        waited = 0

        def synchronize(self):
            Event.waited += 1

    _, host = models(retoken.ReTokenConfig())
    source = host.retoken.source
    source._staging[0].event = Event()
    host(input_ids=token_ids())
    assert Event.waited == 1


def test_the_table_stays_where_it_is():
    _, host = models(retoken.ReTokenConfig())
    table = retoken.modulators(host)[0].table
    before = table.weight.data_ptr()
    host.to("meta")
    assert table.weight.device.type == "cpu" and table.weight.data_ptr() == before
    assert retoken.modulators(host)[0].scale.device.type == "meta"
    host.to(torch.bfloat16)
    assert table.weight.dtype == torch.bfloat16


def test_rows_in_bfloat16_have_gradients_in_float32():
    resident, host = models(retoken.MoRTConfig())
    for model in (resident, host):
        for module in retoken.modulators(model).values():
            module.table.to(torch.bfloat16)
        ids = token_ids()
        model(input_ids=ids, labels=ids).loss.backward()
        model(input_ids=ids, labels=ids).loss.backward()
    for a, b in zip(*(retoken.modulators(m).values() for m in (resident, host)), strict=True):
        assert a.table.weight.dtype == torch.bfloat16
        assert a.table.weight.grad.dtype == torch.float32
        assert torch.equal(a.table.weight.grad.values(), b.table.weight.grad.values())


def test_a_copy_of_the_model_prefetches_for_itself():
    _, host = models(retoken.ReTokenConfig())
    host.retoken.source.prefetch(token_ids())
    twin = copy.deepcopy(host)
    ids = token_ids(seed=3)
    twin.retoken.source.prefetch(ids)
    twin(input_ids=ids, labels=ids).loss.backward()
    assert retoken.modulators(host)[0].table.weight.grad is None
    assert retoken.modulators(twin)[0].table.weight.grad is not None
