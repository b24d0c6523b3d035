"""Parameter groups: each parameter once, with its own rate and decay."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import retoken
from retoken.errors import ConfigError
from retoken.optim import GroupOptions, build_optimizer, parameter_groups
from retoken.optim.groups import set_lr

OPTIONS = GroupOptions(
    lr=1e-2, weight_decay=0.1, table_lr_mult=3.0, table_weight_decay=0.01, scale_lr_mult=2.0
)


def tiny(tie: bool = True) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tie,
        )
    )


def groups_of(model: nn.Module) -> dict[str, dict]:
    return {group["name"]: group for group in parameter_groups(model, retoken.param_groups(model), OPTIONS)}


@pytest.mark.parametrize("config", [None, retoken.ReTokenConfig(), retoken.MoRTConfig()])
@pytest.mark.parametrize("tie", [True, False])
def test_every_parameter_is_in_one_group(config, tie):
    model = tiny(tie)
    if config:
        retoken.attach(model, config)
    groups = groups_of(model)
    assert sum(p.numel() for g in groups.values() for p in g["params"]) == sum(
        p.numel() for p in model.parameters()
    )
    roles = {"matrices", "vectors", "embeddings"}
    if config:
        roles |= {"tables", "scales"} | ({"routers"} if isinstance(config, retoken.MoRTConfig) else set())
    assert set(groups) == roles
    assert ("lm_head.weight" in groups["matrices"]["param_names"]) is not tie


def test_rates_and_decays_are_the_group_s_own():
    groups = groups_of(retoken.attach(tiny(), retoken.MoRTConfig()))
    found = {name: (group["peak_lr"], group["weight_decay"]) for name, group in groups.items()}
    assert found == {
        "matrices": (1e-2, 0.1),
        "vectors": (1e-2, 0.0),
        "embeddings": (1e-2, 0.0),
        "tables": (pytest.approx(3e-2), 0.01),
        "scales": (2e-2, 0.0),
        "routers": (1e-2, 0.1),
    }


def test_the_schedule_moves_every_group_by_its_peak():
    optimizer = build_optimizer(
        groups_of(retoken.attach(tiny(), retoken.ReTokenConfig())).values(), betas=(0.9, 0.95), eps=1e-8
    )
    set_lr(optimizer, 0.5)
    assert {g["name"]: g["lr"] for g in optimizer.param_groups}["tables"] == pytest.approx(1.5e-2)


def test_frozen_parameters_are_left_out():
    model = tiny()
    model.lm_head.weight.requires_grad_(False)
    names = [name for group in groups_of(model).values() for name in group["param_names"]]
    assert "model.embed_tokens.weight" not in names and "model.norm.weight" in names


def test_a_parameter_in_no_group_or_in_two_is_refused():
    model = tiny()
    roles = retoken.param_groups(model)
    twice = {**roles, "tables": roles["backbone"][:1]}
    with pytest.raises(ConfigError, match="is in groups"):
        parameter_groups(model, twice, OPTIONS)
    with pytest.raises(ConfigError, match="1 parameters are in no group"):
        parameter_groups(model, {**roles, "backbone": roles["backbone"][:-1]}, OPTIONS)
    with pytest.raises(ConfigError, match="parameter role 'head' is unknown"):
        parameter_groups(model, {**roles, "head": []}, OPTIONS)
    stranger = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(ConfigError, match="not a trainable parameter of the model"):
        parameter_groups(model, {**roles, "tables": [("stranger", stranger)]}, OPTIONS)


def test_fused_adamw_equals_the_plain_one():
    torch.manual_seed(0)
    ours, theirs = tiny(), tiny()
    theirs.load_state_dict(ours.state_dict())
    fused = build_optimizer(groups_of(ours).values(), betas=(0.9, 0.95), eps=1e-8)
    plain = torch.optim.AdamW(
        [
            {"params": g["params"], "lr": g["peak_lr"], "weight_decay": g["weight_decay"]}
            for g in groups_of(theirs).values()
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
        foreach=False,
    )
    ids = torch.randint(50, (2, 8))
    for _ in range(3):
        for model, optimizer in ((ours, fused), (theirs, plain)):
            optimizer.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
