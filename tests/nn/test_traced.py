"""What modulators in a compiler's graph compute: the naive equations, without a sort or a product."""

import pytest
import torch

import retoken
from retoken.nn.folded import fold_modulator
from retoken.nn.kernels import OPERATORS, TRACED
from retoken.nn.stack import build_modulator
from retoken.ops import naive
from retoken.testing import randomize

V, D, LAYERS = 40, 48, 3
CONFIGS = {
    "retoken": retoken.ReTokenConfig(),
    "mort": retoken.MoRTConfig(num_modulators=5, top_k=3),
    "one": retoken.MoRTConfig(num_modulators=3, top_k=1, norm="l2"),
    "all": retoken.MoRTConfig(num_modulators=3, top_k=3),
    "summed": retoken.MoRTConfig.by_token_and_bigram(2),
}


def _chosen(routing):
    """Weights of all E modulators, [..., E], whatever K of them a choice names."""
    weights = torch.zeros_like(routing.logits_TE)
    return weights.scatter(-1, routing.chosen_TK, routing.weights_TK)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("count", "top_k"), [(5, 1), (5, 3), (4, 4), (1, 1)])
def test_the_choice_is_that_of_a_sort(count, top_k, dtype):
    torch.manual_seed(0)
    hidden, router = torch.randn(2, 7, D).to(dtype), torch.randn(count, D).to(dtype)
    found, wanted = (kernels.route(hidden, router, top_k) for kernels in (TRACED, OPERATORS))
    assert ((found.weights_TK > 0).sum(-1) == top_k).all()
    torch.testing.assert_close(_chosen(found), _chosen(wanted))
    torch.testing.assert_close(found.logits_TE, wanted.logits_TE, rtol=1e-5, atol=1e-5)


def test_of_equals_the_first_are_chosen():
    found = TRACED.route(torch.ones(1, D), torch.ones(4, D), 2)
    assert found.chosen_TK.tolist() == [[0, 1]]
    assert found.weights_TK.tolist() == [[0.5, 0.5]]
    none = TRACED.route(torch.zeros(3, D), torch.randn(4, D), 3)
    assert none.chosen_TK.tolist() == [[0, 1, 2]] * 3
    torch.testing.assert_close(none.weights_TK, torch.full((3, 3), 1 / 3))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_states_that_are_no_numbers_stay_in_the_table(top_k):
    """A compiled loop that reads beyond it would take the process down."""
    found = TRACED.route(torch.full((3, D), torch.nan), torch.randn(4, D), top_k)
    assert found.chosen_TK.min() >= 0
    assert found.chosen_TK.max() < 4
    assert found.weights_TK[:, 0].isnan().all()


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_modulators_give_what_they_give_by_operators(name, folded):
    config = CONFIGS[name]
    module = build_modulator(config, V, D, LAYERS, None, None)
    randomize(module)
    if folded:
        module = fold_modulator(config, module, LAYERS)
    shape = (2, 7, 2) if config.sums_rows else (2, 7)
    states, ids = torch.randn(2, 7, D), torch.randint(module.table.vocab_size, shape)

    def given():
        out = module(states, ids)
        return out[0].add_to(states) if isinstance(out, tuple) else out

    wanted = given().detach()
    module.kernels = TRACED
    torch.testing.assert_close(given().detach(), wanted, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(given, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        torch.testing.assert_close(compiled(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["mort", "one"])
def test_a_residual_is_that_of_the_equations(name):
    config = CONFIGS[name]
    module = build_modulator(config, V, D, LAYERS, None, None)
    randomize(module)
    module.kernels = TRACED
    hidden, ids = torch.randn(6, D), torch.randint(V, (6,))
    chosen, weights = naive.mort_weights(naive.mort_logits(hidden, module.router.weight.T), config.top_k)
    mixed = naive.mort_mix(module.table.weight, ids, chosen, weights)
    wanted = naive.mort_residual(mixed, module.scale, LAYERS, config.norm, config.eps)
    torch.testing.assert_close(module(hidden, ids)[0].tensor(), wanted, rtol=1e-5, atol=1e-6)
