"""What can be asked of an attached model: modulators, losses, parameter groups, the backbone's outputs."""

import inspect

import pytest
import torch

import retoken
from retoken.attach.families import FAMILIES
from retoken.errors import AttachError
from retoken.ops import RouterLoad
from retoken.testing import VOCAB, WIDTH, assert_close, assert_grads_close, randomize, tiny_model, token_ids

CLOSE = {"units": 256, "rounding": torch.float32}  # see test_families.py


def _attached(config, family="llama", **kwargs):
    model = retoken.attach(tiny_model(family, **kwargs), config)
    randomize(model.retoken)
    return model


def test_public_names():
    assert set(retoken.__all__) >= {
        "Family",
        "MoRTConfig",
        "ReTokenConfig",
        "attach",
        "balance_loss",
        "batch_load",
        "config_from_dict",
        "detach",
        "modulators",
        "param_groups",
        "register_family",
        "router_loads",
    }
    assert all(hasattr(retoken, name) for name in retoken.__all__)
    shared = ["norm", "eps", "layers", "init_scale", "init_std"]
    own = ["num_modulators", "top_k", "router_input", "injection_delay", "balance_coef"]
    assert set(shared) <= set(inspect.signature(retoken.ReTokenConfig).parameters)
    assert {*shared, *own} <= set(inspect.signature(retoken.MoRTConfig).parameters)
    assert list(inspect.signature(retoken.attach).parameters)[:2] == ["model", "config"]


def test_the_families_of_the_docs_are_known():
    promised = (
        "llama mistral qwen2 qwen3 gemma2 gemma3_text olmo2 phi3 gpt2 gpt_neox mixtral qwen2_moe qwen3_moe"
    )
    assert set(FAMILIES) >= {*promised.split(), "deepseek_v2", "deepseek_v3", "glm4_moe"}


def test_modulators_show_scales_routers_and_rows(configs):
    ids = token_ids()
    for kind, rows in (("retoken", (2, 7, WIDTH)), ("mort", (2, 7, 4, WIDTH))):
        modulators = retoken.modulators(_attached(configs[kind]))
        assert list(modulators) == [0, 1, 2]
        assert modulators[1].scale.shape == (WIDTH,)
        assert modulators[1].lookup(ids).shape == rows
        assert torch.equal(modulators[1].lookup(ids), modulators[1].table.weight[ids])
    assert modulators[1].router.weight.shape == (4, WIDTH)


@pytest.mark.parametrize("kind", ["mort", "mort-block_input", "mort-delay"])
def test_balance_loss_equals_the_equation(kind, configs, reference):
    model = _attached(configs[kind], dtype=torch.float64)
    plain = tiny_model("llama", dtype=torch.float64)
    expected, ids = reference(plain, configs[kind], model), token_ids()
    expected(ids)
    model(input_ids=ids)
    assert_close("balance loss", expected.balance_loss(), retoken.balance_loss(model), **CLOSE)
    assert retoken.balance_loss(model) > 0


def test_labels_add_the_balance_loss(configs):
    model, ids = _attached(configs["mort"]), token_ids()
    out = model(input_ids=ids, labels=ids)
    logits = out.logits[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()) + retoken.balance_loss(model)
    assert_close("loss", expected, out.loss)
    as_tuple = model(input_ids=ids, labels=ids, return_dict=False)
    assert torch.equal(as_tuple[0], out.loss) and torch.equal(as_tuple[1], out.logits)
    positional = model(ids, None, None, None, None, ids)
    assert torch.equal(positional.loss, out.loss)
    assert model(input_ids=ids).loss is None


def test_ids_may_be_given_by_position_and_to_the_base_model(configs):
    model, ids = _attached(configs["mort-delay"]), token_ids()
    expected = model(input_ids=ids, output_hidden_states=True)
    assert torch.equal(model(ids).logits, expected.logits)
    assert torch.equal(model.model(ids).last_hidden_state, expected.hidden_states[-1])


def test_retoken_has_no_balance_loss(configs):
    model, ids = _attached(configs["retoken"]), token_ids()
    out = model(input_ids=ids, labels=ids)
    assert retoken.balance_loss(model) == 0 and retoken.router_loads(model) == {}
    logits = out.logits[:, :-1].flatten(0, 1)
    assert_close("loss", torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()), out.loss)


def test_padding_does_not_count_in_the_balance_loss(configs):
    model, ids = _attached(configs["mort"]), token_ids(2, 7)
    alone = []
    for row, length in ((0, 7), (1, 4)):
        model(input_ids=ids[row : row + 1, :length])
        alone.append(retoken.router_loads(model))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    model(input_ids=ids, attention_mask=mask)
    for layer, load in retoken.router_loads(model).items():
        for name in RouterLoad._fields:
            parts = getattr(alone[0][layer], name) + getattr(alone[1][layer], name)
            assert_close(f"layer {layer} {name}", parts, getattr(load, name))
    assert load.tokens == 11


def test_a_mask_that_covers_cached_tokens_is_read_from_its_end(configs):
    """The last pass saw the last two positions, one of them padding in the second row."""
    model, ids = _attached(configs["mort"]), token_ids(2, 7)
    cache = model(input_ids=ids[:, :5], use_cache=True).past_key_values
    mask = torch.ones_like(ids)
    mask[1, 6] = 0
    model(input_ids=ids[:, 5:], attention_mask=mask, past_key_values=cache)
    assert {float(load.tokens) for load in retoken.router_loads(model).values()} == {3.0}


@pytest.mark.parametrize("cuts", [(5,), (2, 3), (1, 3, 1)])
@pytest.mark.parametrize("kind", ["mort", "mort-delay"])
def test_the_balance_loss_is_exact_at_any_split_of_the_batch(cuts, kind, configs):
    """Sum of parts = whole, in value and in every gradient, with sequences of unequal length."""
    ids = token_ids(5, 6)
    mask = (torch.arange(6) < torch.tensor([[6], [3], [5], [1], [6]])).long()
    whole, parted = (_attached(configs[kind], dtype=torch.float64).train() for _ in range(2))
    whole(input_ids=ids, attention_mask=mask)
    expected = retoken.balance_loss(whole)
    expected.backward()

    batches = list(zip(ids.split(cuts), mask.split(cuts), strict=True))
    loads = []
    with torch.no_grad():
        for part, keep in batches:
            parted(input_ids=part, attention_mask=keep)
            loads.append(retoken.router_loads(parted))
    total = {i: RouterLoad(*map(sum, zip(*(load[i] for load in loads), strict=True))) for i in loads[0]}
    losses = []
    with retoken.batch_load(parted, total):
        for part, keep in batches:
            parted(input_ids=part, attention_mask=keep)
            losses.append(retoken.balance_loss(parted))
            losses[-1].backward()
    assert_close("loss", expected, torch.stack(losses).sum(), **CLOSE)
    assert_grads_close(whole, parted, **CLOSE)


def test_batch_load_ends_with_its_block(configs):
    model, ids = _attached(configs["mort"]), token_ids()
    model(input_ids=ids)
    alone = retoken.balance_loss(model)
    with retoken.batch_load(
        model, {i: RouterLoad(*(2 * x for x in v)) for i, v in retoken.router_loads(model).items()}
    ):
        assert not torch.equal(retoken.balance_loss(model), alone)
    assert torch.equal(retoken.balance_loss(model), alone)


def test_no_balance_loss_before_the_first_forward(configs):
    with pytest.raises(AttachError, match="none has run"):
        retoken.balance_loss(_attached(configs["mort"]))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("tied", [False, True])
def test_param_groups_hold_each_parameter_once(family, tied, config):
    model = _attached(config, family, tie_word_embeddings=tied)
    groups = retoken.param_groups(model)
    assert list(groups) == ["backbone", "tables", "scales", "routers"]
    named = [parameter for group in groups.values() for parameter in group]
    assert sorted(n for n, _ in named) == sorted(n for n, _ in model.named_parameters())
    assert len({id(p) for _, p in named}) == len(named)
    layers = config.table_layers(3)
    sizes = {name: sum(p.numel() for _, p in group) for name, group in groups.items()}
    assert sizes["tables"] == config.table_params(VOCAB, WIDTH, 3)
    assert sizes["scales"] == len(layers) * WIDTH
    assert sizes["scales"] + sizes["routers"] == config.other_params(WIDTH, 3)
    assert sizes["backbone"] == sum(
        p.numel() for p in tiny_model(family, tie_word_embeddings=tied).parameters()
    )


def test_a_parameter_of_no_group_is_an_error(configs):
    model = _attached(configs["retoken"])
    model.retoken.layers["0"].extra = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(AttachError, match=r"retoken\.layers\.0\.extra"):
        retoken.param_groups(model)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "olmoe"])
def test_hidden_states_and_attentions_can_be_asked_for(family, main_config, reference):
    model = _attached(main_config, family, dtype=torch.float64)
    expected = reference(tiny_model(family, dtype=torch.float64), main_config, model)
    ids = token_ids()
    out = model(input_ids=ids, output_hidden_states=True, use_cache=False)
    ref = expected(ids, output_hidden_states=True)
    assert len(out.hidden_states) == 4
    for depth, (a, b) in enumerate(zip(ref.hidden_states, out.hidden_states, strict=True)):
        assert_close(f"hidden state {depth}", a, b, **CLOSE)
    model.set_attn_implementation("eager")
    assert len(model(input_ids=ids, output_attentions=True).attentions) == 3


def test_the_backbones_own_router_loss_is_kept(configs):
    """A mixture's auxiliary loss and ours are both added."""
    ids = token_ids()
    options = {"output_router_logits": True, "router_aux_loss_coef": 0.5}
    model = _attached(configs["mort"], "qwen3_moe", **options)
    out = model(input_ids=ids, labels=ids)
    plain = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert_close("loss", plain + 0.5 * out.aux_loss + retoken.balance_loss(model), out.loss)


def test_a_micro_batchs_share_of_the_balance_loss(configs):
    """With `num_items_in_batch`, as Trainer passes it, shares over micro-batches add up to one."""
    model, ids = _attached(configs["mort"]), token_ids(2, 7)
    labels = ids.clone()
    labels[0, 3:] = -100
    parts = [model(input_ids=ids, labels=labels, num_items_in_batch=n).loss for n in (8, 16)]
    assert_close("half the share", parts[0] / 2, parts[1])
    model(input_ids=ids)
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    nll = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    assert_close("loss", (nll + 8 * retoken.balance_loss(model)) / 16, parts[1])
