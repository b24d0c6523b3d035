"""Kernels that were made ready in an earlier pass are used again, and only while they are right."""

import copy
import gc
import weakref

import pytest
import torch

import retoken
from retoken.nn import TokenTable
from retoken.testing import randomize, tiny_model, token_ids

CONFIGS = {
    "retoken": retoken.ReTokenConfig(),
    "mort": retoken.MoRTConfig(num_modulators=4, top_k=2),
    "both": retoken.MoRTConfig.by_token_and_bigram(2),
}
IDS = token_ids(2, 9)


@pytest.fixture(params=CONFIGS)
def model(request):
    made = retoken.attach(tiny_model("llama"), CONFIGS[request.param]).eval()
    randomize(made.retoken)
    return made


def modules(model):
    return list(retoken.modulators(model).values())


@torch.no_grad()
def logits(model, ids=IDS):
    return model(input_ids=ids, use_cache=False).logits


def anew(model, ids=IDS):
    """As if there had been no pass before."""
    for module in modules(model):
        module.table.prepared = None
    return logits(model, ids)


def test_passes_of_other_shapes_share_what_is_ready(model):
    logits(model)
    ready = [module.table.prepared for module in modules(model)]
    assert all(ready)
    found = [logits(model, ids) for ids in (IDS[:, :1], IDS, token_ids(1, 40, seed=3))]
    assert [module.table.prepared for module in modules(model)] == ready
    for ids, seen in zip((IDS[:, :1], IDS, token_ids(1, 40, seed=3)), found, strict=True):
        assert torch.equal(seen, anew(model, ids))


def _new_rows(module):
    module.table.weight = torch.nn.Parameter(torch.randn_like(module.table.weight))


def _other_memory(module):
    module.table.weight.data = torch.randn_like(module.table.weight)


def _in_place(module):
    module.table.weight.data.mul_(torch.randn_like(module.table.weight))


def _other_type(module):
    module.table.to(torch.bfloat16)


def _new_scale(module):
    module.scale = torch.nn.Parameter(torch.randn_like(module.scale))


def _other_epsilon(module):
    module.eps = 0.5


def _other_gain(module):
    module.gain *= 3


def _other_table(module):
    module.table = copy.deepcopy(module.table)
    module.table.weight.data.add_(1)


CHANGES = (_new_rows, _other_memory, _in_place, _other_type, _new_scale, _other_epsilon, _other_gain)


@pytest.mark.parametrize("change", [*CHANGES, _other_table])
def test_what_has_changed_is_seen(model, change):
    before = logits(model)
    for module in modules(model):
        change(module)
    after = logits(model)
    assert not torch.equal(before, after)
    assert torch.equal(after, anew(model))


def test_hooks_are_called(model):
    logits(model)
    called = []
    for module in modules(model):
        module.register_forward_hook(lambda module, args, output: called.append(module))
    logits(model)
    assert called == modules(model)


def test_another_router_is_seen():
    model = retoken.attach(tiny_model("llama"), CONFIGS["mort"]).eval()
    randomize(model.retoken)
    before = logits(model)
    for module in modules(model):
        module.router = copy.deepcopy(module.router)
        module.router.weight.data.neg_()
    after = logits(model)
    assert not torch.equal(before, after) and torch.equal(after, anew(model))


def test_layers_that_share_a_table_have_their_own_scales(model):
    first, second, *_ = modules(model)
    second.table = first.table
    found = logits(model)
    first.table.prepared = None
    assert torch.equal(logits(model), found)
    with torch.no_grad():
        second.scale.neg_()
    assert not torch.equal(logits(model), found)


def test_a_copy_has_its_own(model):
    before = logits(model)
    other = copy.deepcopy(model)
    assert all(module.table.prepared is None for module in modules(other))
    for module in modules(model):
        module.table.weight.data.zero_()
    assert torch.equal(logits(other), before)


def test_rows_that_move_leave_their_memory(model, tmp_path):
    before = logits(model)
    left = [weakref.ref(module.table.weight) for module in modules(model)]
    retoken.place(model, "host")
    gc.collect()
    assert not any(ref() is not None for ref in left)
    assert torch.equal(logits(model), before)
    assert torch.equal(logits(model), before)
    assert all(module.table.prepared for module in modules(model))
    assert TokenTable.prepared is None
