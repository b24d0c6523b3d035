"""torch.compile of the whole model and of layers one by one: no graph break, the same numbers.

The "aot_eager" backend traces forward and backward as every backend does and runs the graph with eager's
kernels, so results are compared tightly; one test goes through the default backend's code generation.
"""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

import retoken
from retoken.testing import assert_close, assert_grads_close, randomize, tiny_model, token_ids


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def _pair(config, family="llama", depth=2):
    model = retoken.attach(tiny_model(family, num_hidden_layers=depth), config).train()
    randomize(model.retoken)
    return model, copy.deepcopy(model)


def _train(model, ids, compiled=None):
    loss = (model if compiled is None else compiled)(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss


@pytest.mark.parametrize("kind", ["retoken", "mort", "mort-block_input", "mort-delay"])
def test_whole_model_in_one_graph(kind, configs):
    eager, model = _pair(configs[kind])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    for seed in (1, 2):
        ids = token_ids(seed=seed)
        assert_close("loss", _train(eager, ids), _train(model, ids, compiled))
    assert_grads_close(eager, model, units=128)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert_close("balance loss", retoken.balance_loss(eager), retoken.balance_loss(model))


@pytest.mark.parametrize("kind", ["retoken", "mort", "mort-block_input"])
def test_layers_one_by_one_share_a_graph(kind, configs):
    """Ten layers: above the compiler's limit of eight recompilations, so a graph per layer would fail."""
    eager, model = _pair(configs[kind], depth=10)
    for layer in model.model.layers:
        layer.compile(fullgraph=True, backend="aot_eager")
    ids = token_ids()
    assert_close("loss", _train(eager, ids), _train(model, ids))
    assert_grads_close(eager, model, units=128)
    assert counters["stats"]["unique_graphs"] == 1


def test_layers_one_by_one_with_a_delay(configs):
    """What is delayed differs from layer to layer, so each layer has its graph: fine up to eight layers."""
    eager, model = _pair(configs["mort-delay"], depth=3)
    for layer in model.model.layers:
        layer.compile(fullgraph=True, backend="aot_eager")
    ids = token_ids()
    assert_close("loss", _train(eager, ids), _train(model, ids))
    assert_grads_close(eager, model, units=128)


@pytest.mark.parametrize("kind", ["retoken", "mort", "mort-delay"])
@pytest.mark.parametrize("one_graph", [False, True])
def test_with_activation_checkpointing(kind, one_graph, configs):
    """What a layer leaves behind is a side effect, which the compiler takes into a checkpoint only when told.

    Untold, it breaks the graph at each checkpoint; the numbers are right either way.
    """
    eager, model = _pair(configs[kind])
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    compiled = torch.compile(model, fullgraph=one_graph, backend="aot_eager", dynamic=False)
    ids = token_ids()
    with torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=one_graph):
        assert_close("loss", _train(eager, ids), _train(model, ids, compiled))
    assert_grads_close(eager, model, units=128)


def test_default_backend(configs):
    """Inductor reorders sums and keeps more bits inside fused kernels, hence a wider tolerance."""
    eager, model = _pair(configs["mort"], depth=1)
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    ids = token_ids()
    assert_close("loss", _train(eager, ids), _train(model, ids, compiled), units=128)
    assert_grads_close(eager, model, units=1024)


def test_compiled_decoding_with_a_static_cache(configs):
    from transformers import StaticCache

    _, model = _pair(configs["mort"])
    model.eval()
    ids = token_ids(1, 6)
    step = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    cache = StaticCache(config=model.config, max_cache_len=8)
    with torch.no_grad():
        full = model(input_ids=ids, use_cache=False).logits
        model(input_ids=ids[:, :3], past_key_values=cache, use_cache=True)
        for at in range(3, 6):
            where = {"position_ids": torch.tensor([[at]]), "past_key_values": cache, "use_cache": True}
            out = step(input_ids=ids[:, at : at + 1], **where)
            assert_close(f"position {at}", full[:, at], out.logits[:, 0], units=128)
    assert not counters["graph_break"]
