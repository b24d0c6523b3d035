"""Counts against modules that are really built, and against arithmetic done by hand."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

import retoken
from retoken import presets
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.errors import ConfigError

SMALL = ("demo", "cpu-s", "cpu-moe")
MODULATORS: tuple[ModulatorConfig | None, ...] = (
    None,
    ReTokenConfig(),
    ReTokenConfig(layers=(0, 2)),
    MoRTConfig(num_modulators=4, top_k=2),
    MoRTConfig(injection_delay=1),
)


def build(config: PretrainedConfig, modulator: ModulatorConfig | None) -> torch.nn.Module:
    model = AutoModelForCausalLM.from_config(config)
    return retoken.attach(model, modulator) if modulator else model


@pytest.mark.parametrize("modulator", MODULATORS, ids=lambda m: str(m and m.type))
@pytest.mark.parametrize("name", SMALL)
def test_counts_equal_the_built_model(name: str, modulator: ModulatorConfig | None) -> None:
    config = presets.get(name).hf_config(vocab_size=131)
    counts = presets.count(config, modulator)
    model = build(config, modulator)
    assert counts.stored_params == sum(p.numel() for p in model.parameters())
    groups = retoken.param_groups(model)
    sizes = {group: sum(p.numel() for _, p in named) for group, named in groups.items()}
    assert counts.backbone_params == sizes["backbone"]
    assert counts.table_params == sizes["tables"]
    assert counts.other_params == sizes["scales"] + sizes["routers"]


def test_a_dense_backbone_by_hand() -> None:
    """Llama, d 64, 3 layers, SwiGLU 176, 4 heads of 16, vocabulary 2048, untied, context 128."""
    counts = presets.count(presets.get("demo"), ReTokenConfig())
    matrices = 3 * (4 * 64 * 64 + 3 * 64 * 176)
    norms = 3 * 2 * 64 + 64
    head = 2048 * 64
    assert counts.total_params == counts.compute_params == matrices + norms
    assert counts.embedding_params == 2 * head
    assert counts.activated_params == counts.backbone_params == matrices + norms + 2 * head
    attention = 3 * 2 * (64 + 64) * (128 + 1) / 2
    assert counts.backbone_flops_per_token == 3 * (2 * (matrices + head) + attention)
    assert counts.table_flops_per_token == 3 * 4 * 64 * 3
    assert counts.eta == counts.table_params / (matrices + norms)
    assert counts.rho == 1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_matrix_products_are_what_pytorch_counts(family: str) -> None:
    """PyTorch's counter over a forward pass. It takes all T x T positions in attention, we those seen."""
    length, width, layers = 16, 32, 2
    shape = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    config = AutoConfig.for_model(family, vocab_size=100, max_position_embeddings=64, **shape)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False)
    unseen = layers * 2 * (width + width) * (length - (length + 1) / 2)
    ours = presets.count(config, context_length=length).flops_per_token / 3
    # The rest is the product that makes the rotary angles.
    assert ours == pytest.approx(counter.get_total_flops() / length - unseen, rel=2e-3)


def test_a_mixture_by_hand() -> None:
    """Of routed experts a token uses top-k; the shared one, the dense layer and the router in full."""
    preset = presets.get("cpu-moe")
    counts = presets.count(preset)
    expert, experts, top_k, layers = 3 * 128 * 112, 8, 2, 3
    assert counts.backbone_params - counts.activated_params == layers * expert * (experts - top_k)


def test_mort_flops_are_eq_7() -> None:
    backbone = presets.Backbone.of(presets.get("demo"))
    d, layers = 64, 3

    def forward(n_e: int, K: int, delay: int = 0) -> float:
        config = MoRTConfig(num_modulators=n_e, top_k=K, injection_delay=delay)
        return backbone.count(config).table_flops_per_token / 3

    assert forward(5, 3) == layers * (2 * d * 5 + 2 * d * 3 + 5 * d)
    assert forward(6, 3) - forward(5, 3) == layers * 2 * d
    assert forward(5, 4) - forward(5, 3) == layers * 2 * d
    assert forward(5, 3, delay=1) * layers == forward(5, 3) * (layers - 1)


def test_a_tied_head_is_stored_once_and_computed() -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    tied, untied = (
        presets.count(AutoConfig.for_model("llama", vocab_size=100, tie_word_embeddings=tie, **shape))
        for tie in (True, False)
    )
    assert untied.backbone_params - tied.backbone_params == 100 * 32
    assert untied.compute_params == tied.compute_params
    assert untied.flops_per_token == tied.flops_per_token


FAMILIES = {
    "llama": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "gpt_neox": {},
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "deepseek_v3": {
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1},
        **{
            "topk_group": 1,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
        },
        **{"v_head_dim": 12, "first_k_dense_replace": 1},
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_of_family_can_be_counted(family: str) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    shape |= {"intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64}
    config = AutoConfig.for_model(family, **shape, **FAMILIES[family])
    counts = presets.count(config, MoRTConfig(), context_length=16)
    model = build(config, MoRTConfig())
    assert counts.stored_params == sum(p.numel() for p in model.parameters())
    mixture = "num_experts_per_tok" in FAMILIES[family]
    assert (counts.compute_params < counts.total_params) == mixture
    assert 0 < counts.embedding_params < counts.backbone_params


def test_an_attached_models_config_counts_the_backbone_only() -> None:
    """Training counts from the model it has, tables and all."""
    config = presets.get("demo").hf_config(vocab_size=131)
    plain = presets.count(config)
    model = build(config, MoRTConfig())
    assert presets.count(model.config) == plain


def test_counting_leaves_the_random_numbers_alone() -> None:
    before = torch.get_rng_state()
    presets.count(presets.get("demo"), MoRTConfig())
    assert torch.equal(before, torch.get_rng_state())


def test_longer_contexts_cost_more() -> None:
    preset = presets.get("demo")
    short, long = (presets.count(preset, context_length=n).flops_per_token for n in (128, 256))
    assert long - short == 3 * 3 * 2 * (64 + 64) * 128 / 2


def test_to_dict_has_every_field_and_ratio() -> None:
    values = presets.count(presets.get("demo"), MoRTConfig()).to_dict()
    assert {f.name for f in fields(presets.Counts)} < set(values)
    assert {"stored_params", "compute_params", "eta", "rho", "flops_per_token"} <= set(values)


def test_a_configuration_that_is_no_language_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="model_type 'vit' gives no causal language model"):
        presets.count(AutoConfig.for_model("vit"))


def test_a_modulator_deeper_than_the_backbone_is_refused() -> None:
    with pytest.raises(ConfigError, match="layers"):
        presets.count(presets.get("demo"), ReTokenConfig(layers=(3,)))
