"""What callers get wrong: each a named error of one line, and nothing half done."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

import retoken
from retoken.attach.families import FAMILIES
from retoken.errors import AttachError, ConfigError, RetokenError
from retoken.testing import randomize, tiny_config, tiny_model, token_ids


def _refused(error, match, call):
    with pytest.raises(error, match=match) as caught:
        call()
    assert isinstance(caught.value, RetokenError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD_CONFIGS = {
    "norm": ("norm is 'l1'; accepted: rms or l2", {"norm": "l1"}),
    "eps zero": ("eps is 0", {"eps": 0}),
    "eps text": ("eps is 'small'", {"eps": "small"}),
    "eps not a number": ("eps is nan", {"eps": float("nan")}),
    "init_scale": ("init_scale is None", {"init_scale": None}),
    "init_std": ("init_std is -1", {"init_std": -1}),
    "no layers": (r"layers is \(\)", {"layers": ()}),
    "negative layer": (r"layers is \[-1\]", {"layers": [-1]}),
    "layer twice": ("each layer once", {"layers": [1, 1]}),
    "layers as a number": ("layers is 3", {"layers": 3}),
    "layer as a float": (r"layers is \[1.0\]", {"layers": [1.0]}),
    "K above n_e": (r"top_k is 6; accepted: 1\.\.5 \(num_modulators is 5\)", {"top_k": 6}),
    "K zero": ("top_k is 0", {"top_k": 0}),
    "n_e zero": ("num_modulators is 0", {"num_modulators": 0}),
    "n_e fractional": ("num_modulators is 2.5", {"num_modulators": 2.5}),
    "router_input": (
        "router_input is 'mlp'; accepted: post_att",
        {"router_input": "mlp"},
    ),
    "negative delay": ("injection_delay is -1", {"injection_delay": -1}),
    "fractional delay": ("injection_delay is 0.5", {"injection_delay": 0.5}),
    "negative lambda": ("balance_coef is -0.1", {"balance_coef": -0.1}),
    "lambda true": ("balance_coef is True", {"balance_coef": True}),
}


@pytest.mark.parametrize("case", BAD_CONFIGS, ids=str)
def test_config_values(case):
    match, values = BAD_CONFIGS[case]
    _refused(ConfigError, match, lambda: retoken.MoRTConfig(**values))
    if set(values) <= set(retoken.ReTokenConfig().to_dict()):
        _refused(ConfigError, match, lambda: retoken.ReTokenConfig(**values))


def test_config_dicts():
    good = retoken.MoRTConfig(layers=[2, 0], injection_delay=1).to_dict()
    assert retoken.config_from_dict(good) == retoken.MoRTConfig(layers=(0, 2), injection_delay=1)
    for match, change in {
        "modulator type is 'lora'; accepted: retoken, mort": {"type": "lora"},
        "format_version is 2": {"format_version": 2},
        "format_version is None": {"format_version": None},
        r"option of mort is \['rank'\]": {"rank": 8},
        "top_k is 9": {"top_k": 9},
    }.items():
        _refused(ConfigError, match, lambda change=change: retoken.config_from_dict(good | change))
    _refused(ConfigError, "accepted: a dict", lambda: retoken.config_from_dict("mort"))


BAD_FITS = {
    "layer out of range": (r"layers is \[0, 3\]; accepted: 0\.\.2 in a backbone of 3", {"layers": [0, 3]}),
    "delay beyond depth": ("injection_delay is 3; accepted: below the backbone's 3", {"injection_delay": 3}),
    "landing beyond depth": (r"layers is \[2\].*with a delay of 1", {"layers": [2], "injection_delay": 1}),
}


@pytest.mark.parametrize("case", BAD_FITS, ids=str)
def test_config_that_does_not_fit_the_model(case):
    match, values = BAD_FITS[case]
    model = tiny_model("llama")
    _refused(ConfigError, match, lambda: retoken.attach(model, retoken.MoRTConfig(**values)))
    assert _untouched(model)


def _untouched(model):
    plain = tiny_model("llama")
    same = [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    return (
        same
        and not hooks
        and not hasattr(model, "retoken")
        and model.config.to_dict() == plain.config.to_dict()
    )


def test_an_unknown_family_is_refused_with_what_was_looked_for(configs):
    model = tiny_model("stablelm")
    text = _refused(
        AttachError, "'stablelm' is not a known family", lambda: retoken.attach(model, configs["mort"])
    )
    assert "retoken.Family(layers=" in text and all(family in text for family in FAMILIES)


@pytest.mark.parametrize(
    ("match", "family"),
    [
        ("no list of layers at 'blocks'; it has: embed_tokens, layers", retoken.Family(layers="blocks")),
        ("'norm' is a LlamaRMSNorm, not a list of layers", retoken.Family(layers="norm")),
        (r"layer 0 has no MLP at 'ffn'; it has: self_attn, mlp", retoken.Family(mlp="ffn")),
        ("no MLP increment at 'post_mlp_norm'", retoken.Family(increment="post_mlp_norm")),
    ],
)
def test_a_wrong_description_says_what_there_is(match, family, configs):
    model = tiny_model("llama")
    _refused(AttachError, match, lambda: retoken.attach(model, configs["retoken"], family=family))
    assert _untouched(model)


def test_a_family_described_by_the_caller_works(main_config, reference):
    plain = tiny_model("stablelm", dtype=torch.float64)
    model = retoken.attach(copy.deepcopy(plain), main_config, family=retoken.Family())
    randomize(model.retoken)
    expected = reference(plain, main_config, model)(token_ids()).logits
    assert torch.allclose(expected, model(input_ids=token_ids()).logits, rtol=0, atol=1e-5)


def test_the_wrong_increment_gives_another_model(configs, reference):
    """The comparison with the equations sees it when OLMo 2 is gated before the norm behind its MLP."""
    plain = tiny_model("olmo2", dtype=torch.float64)
    model = retoken.attach(copy.deepcopy(plain), configs["retoken"], family=retoken.Family(increment="mlp"))
    randomize(model.retoken)
    expected = reference(plain, configs["retoken"], model)(token_ids()).logits
    assert (expected - model(input_ids=token_ids()).logits).abs().max() > 1e-2


def test_attaching_twice(configs):
    model = retoken.attach(tiny_model("llama"), configs["retoken"])
    _refused(AttachError, "already carries", lambda: retoken.attach(model, configs["mort"]))


def test_asking_a_plain_model(configs):
    model = tiny_model("llama")
    for ask in (retoken.detach, retoken.modulators, retoken.balance_loss, retoken.router_loads):
        _refused(AttachError, "carries no token-indexed parameters", lambda ask=ask: ask(model))
    assert set(retoken.param_groups(model)) == {"backbone", "tables", "scales", "routers"}


def test_not_a_config(configs):
    _refused(AttachError, "config is a dict", lambda: retoken.attach(tiny_model("llama"), {"norm": "rms"}))
    _refused(
        AttachError,
        "config is the type MoRTConfig",
        lambda: retoken.attach(tiny_model("llama"), retoken.MoRTConfig),
    )


def test_models_without_a_language_model_head(configs):
    config = configs["retoken"]
    headless = AutoModel.from_config(tiny_config("llama"))
    _refused(AttachError, "LlamaModel has no language-model head", lambda: retoken.attach(headless, config))
    classifier = AutoModelForSequenceClassification.from_config(tiny_config("llama"))
    _refused(AttachError, "no language-model head", lambda: retoken.attach(classifier, config))


def test_wrapped_models(configs):
    config = configs["retoken"]
    wrapped = torch.nn.Sequential(tiny_model("llama"))
    _refused(AttachError, "found Sequential; attach before wrapping", lambda: retoken.attach(wrapped, config))
    compiled = torch.compile(tiny_model("llama"))
    _refused(AttachError, "found OptimizedModule", lambda: retoken.attach(compiled, config))
    in_place = tiny_model("llama")
    in_place.model.layers[1].compile()
    _refused(AttachError, "LlamaDecoderLayer is wrapped by torch", lambda: retoken.attach(in_place, config))
    patched = tiny_model("llama")
    patched.model.layers[0].forward = patched.model.layers[0].forward
    _refused(AttachError, "wrapped by a replaced forward", lambda: retoken.attach(patched, config))


def test_detaching_a_model_wrapped_since(configs):
    model = retoken.attach(tiny_model("llama"), configs["retoken"])
    _refused(AttachError, "or wraps what does", lambda: retoken.detach(torch.nn.Sequential(model)))
    model.forward = model.forward
    _refused(AttachError, "wrapped by a replaced forward", lambda: retoken.detach(model))
    del model.forward
    retoken.detach(model)
    assert _untouched(model)


def test_peft_models(configs):
    peft = pytest.importorskip("peft")  # an optional dependency
    adapted = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["q_proj"]))
    _refused(AttachError, "found PeftModel; attach before", lambda: retoken.attach(adapted, configs["mort"]))


@pytest.mark.parametrize("how", ["forward", "generate"])
def test_inputs_embeds_only(main_config, how):
    model = retoken.attach(tiny_model("llama"), main_config)
    embeds = model.get_input_embeddings()(token_ids())
    calls = {
        "forward": lambda: model(inputs_embeds=embeds),
        "generate": lambda: model.generate(inputs_embeds=embeds, max_new_tokens=2),
    }
    _refused(AttachError, "need input_ids, found inputs_embeds only", calls[how])
    assert model(input_ids=token_ids()).logits.isfinite().all()


def test_a_layer_called_without_its_model(configs):
    model = retoken.attach(tiny_model("llama"), configs["retoken"])
    hidden = torch.randn(1, 3, 32)
    position = model.model.rotary_emb(hidden, torch.arange(3)[None])
    layer = model.model.layers[0]
    _refused(
        AttachError,
        "no token ids: it was called without",
        lambda: layer(hidden, position_embeddings=position),
    )


def test_a_backbone_whose_forward_takes_no_keyword_arguments(configs, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(type(model.model), "forward", lambda self, input_ids=None, attention_mask=None: None)
    _refused(AttachError, r"takes no \*\*kwargs", lambda: retoken.attach(model, configs["retoken"]))


def test_a_failed_forward_leaves_the_model_usable(main_config):
    model, ids = retoken.attach(tiny_model("llama"), main_config), token_ids()
    before = model(input_ids=ids).logits
    handle = model.model.layers[1].mlp.register_forward_hook(lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(input_ids=ids)
    handle.remove()
    assert torch.equal(model(input_ids=ids).logits, before)


def test_a_failed_attach_leaves_the_model_untouched(configs, monkeypatch):
    model = tiny_model("llama")

    def no_memory(*args, **kwargs):
        raise MemoryError("tables")

    monkeypatch.setattr("retoken.nn.table.TokenTable.__init__", no_memory)
    with pytest.raises(MemoryError):
        retoken.attach(model, configs["retoken"])
    assert _untouched(model)


def test_other_attached_types_are_not_offered_to_headless_loaders(configs, tmp_path):
    """Loading the body of an attached checkpoint alone would drop its tables unsaid."""
    retoken.attach(tiny_model("llama"), configs["retoken"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="ReTokenLlamaConfig"):
        AutoModel.from_pretrained(tmp_path)
    assert isinstance(AutoConfig.from_pretrained(tmp_path), type(tiny_config("llama")))
    assert hasattr(AutoModelForCausalLM.from_pretrained(tmp_path), "retoken")
