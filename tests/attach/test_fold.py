"""Folding: the same outputs from rows that hold what is constant (Eq. 8); saved, loaded, taken off."""

import json

import pytest
import torch
import transformers

import retoken
from retoken.errors import AttachError, CheckpointError, ConfigError
from retoken.ops import naive
from retoken.testing import DEPTH, assert_close, randomize, tiny_model, token_ids

IDS = token_ids()
SINGLE = retoken.MoRTConfig(num_modulators=3, top_k=1)


def attached(config, dtype=torch.float32):
    model = retoken.attach(tiny_model("llama", dtype=dtype), config).eval()
    randomize(model.retoken)
    return model


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("norm", ["rms", "l2"])
def test_retokens_table_becomes_the_papers_p(norm):
    model = attached(retoken.ReTokenConfig(norm=norm))
    before = {i: (m.table.weight.clone(), m.scale.clone()) for i, m in retoken.modulators(model).items()}
    assert retoken.fold(model) is model
    for layer, (table, scale) in before.items():
        p = naive.folded_gate(table, scale, norm)
        assert_close("P", p, retoken.modulators(model)[layer].lookup(torch.arange(131)))


def test_mort_with_one_modulator_a_token_keeps_its_residuals_as_rows():
    model = attached(SINGLE)
    part = retoken.modulators(model)[1]
    wanted = naive.mort_residual(part.table.weight.detach().clone(), part.scale.detach(), DEPTH, SINGLE.norm)
    retoken.fold(model)
    assert_close("rows", wanted, retoken.modulators(model)[1].table.weight)
    assert retoken.modulators(model)[1].scale is None


def test_mort_with_a_mixture_keeps_its_rows(configs):
    model = attached(configs["mort"])
    rows = retoken.modulators(model)[0].table.weight.detach().clone()
    retoken.fold(model)
    assert torch.equal(rows, retoken.modulators(model)[0].table.weight)


@pytest.mark.parametrize("single", [False, True])
def test_a_folded_model_computes_the_same(config, single):
    model = attached(SINGLE if single else config)
    before = logits(model)
    retoken.fold(model)
    assert_close("logits", before, logits(model), units=256)


def test_a_folded_gate_is_the_unfolded_one_bit_for_bit_in_float32():
    """Of the plain operators; the fused ones add a row's squares up in another order."""
    model = attached(retoken.ReTokenConfig())
    before = model(input_ids=IDS).logits
    assert torch.equal(before, retoken.fold(model)(input_ids=IDS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scale_zero_folds_to_the_backbone_bit_for_bit(main_config, dtype):
    plain = logits(tiny_model("llama", dtype=dtype))
    model = attached(main_config, dtype)
    for module in retoken.modulators(model).values():
        module.scale.data.zero_()
    assert torch.equal(plain, logits(retoken.fold(model)))


@pytest.mark.parametrize("single", [False, True])
def test_a_saved_folded_model_loads_folded(config, single, tmp_path):
    model = retoken.fold(attached(SINGLE if single else config))
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(model), logits(again))
    assert not any(p.requires_grad for p in again.retoken.parameters())
    with pytest.raises(AttachError, match="folded already"):
        retoken.fold(again)


def test_a_version_without_folding_refuses_the_config():
    model = retoken.fold(attached(retoken.ReTokenConfig()))
    with pytest.raises(ConfigError, match="folded"):
        retoken.config_from_dict(model.config.retoken["modulator"])


def test_detach_takes_a_folded_model_apart(main_config):
    plain = logits(tiny_model("llama"))
    assert torch.equal(plain, logits(retoken.detach(retoken.fold(attached(main_config)))))


def test_what_cannot_be_folded_is_refused_and_stays():
    with pytest.raises(AttachError, match="carries no token-indexed parameters"):
        retoken.fold(tiny_model("llama"))
    model = attached(retoken.ReTokenConfig()).train()
    with pytest.raises(AttachError, match="training mode"):
        retoken.fold(model)
    retoken.fold(model.eval())
    with pytest.raises(AttachError, match="folded already"):
        retoken.fold(model)


def test_a_config_that_is_not_clear_about_folding_is_refused(tmp_path):
    retoken.attach(tiny_model("llama"), retoken.ReTokenConfig()).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written["retoken"]["modulator"]["folded"] = "yes"
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(CheckpointError, match=r"folded is 'yes'; accepted: true or false"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
