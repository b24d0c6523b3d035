"""Rows that are looked up by n-grams, placed: the same answers as with the tables in the model."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import retoken
from retoken.attach.rivals import BigramConfig
from retoken.errors import ConfigError
from retoken.serving.artifact import write_artifact
from retoken.testing import assert_close, randomize, tiny_model, token_ids

CONFIGS = {
    "retoken bigram": retoken.ReTokenConfig(index="bigram", index_size=1.3),
    "mort bigram": retoken.MoRTConfig(index="bigram", num_modulators=3, top_k=2),
    "retoken both": retoken.ReTokenConfig(index="token_bigram", index_size=0.7),
    "mort both": retoken.MoRTConfig(index="token_bigram", num_modulators=3, top_k=2),
    "the recipe": retoken.MoRTConfig.by_token_and_bigram(3),
}
COUNTS = torch.arange(100, 0, -1)
IDS = token_ids()
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def attached(config):
    model = retoken.attach(tiny_model("llama"), config)
    randomize(model.retoken)
    model.generation_config.eos_token_id = None
    return model.eval()


@torch.no_grad()
def answers(model):
    made = model.generate(IDS, max_new_tokens=6, do_sample=False, pad_token_id=0)
    return model(input_ids=IDS).logits, made


def assert_same(found, wanted):
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@every_config
@pytest.mark.parametrize("tables", ["host", "disk", "cascade"])
@pytest.mark.parametrize("prefetch", ["record", "chosen"])
def test_placed(config, tables, prefetch, tmp_path):
    model = attached(config)
    wanted = answers(model)
    where = {"path": tmp_path / "rows.safetensors", "prefetch": prefetch, "verify": True}
    if tables == "cascade":
        rows = model.retoken.layers["0"].table.vocab_size
        row = sum(m.table.weight.nbytes for m in model.retoken.layers.values()) // rows
        counts = torch.rand(rows) if config.index == "bigram" else COUNTS
        placed = retoken.place(model, "disk", budget={"host": 40 * row}, counts=counts, **where)
        host, disk = placed.tiers
        assert (host.name, disk.name) == ("host", "disk") and host.tokens + disk.tokens == rows
        assert 20 < host.tokens <= 40
    else:
        retoken.place(model, tables, **where)
    assert_same(answers(model), wanted)


@every_config
def test_loaded_and_exported(config, tmp_path):
    model = attached(config)
    wanted = answers(model)
    model.save_pretrained(tmp_path / "model")
    assert_same(answers(retoken.load(tmp_path / "model", "host")), wanted)
    artifact = write_artifact(tmp_path / "model", tmp_path / "served")
    assert artifact.tokens == model.retoken.layers["0"].table.vocab_size
    for served in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "served"),
        retoken.load(tmp_path / "served"),
    ):
        assert served.retoken.source.placement.tiers[0].name == "disk"
        assert_same(answers(served), wanted)


def test_rounded_rows_are_those_of_a_rounded_model(tmp_path):
    model, twin = attached(CONFIGS["the recipe"]), attached(CONFIGS["the recipe"])
    for module in twin.retoken.layers.values():
        module.table.weight.data = module.table.weight.data.bfloat16().float()
    retoken.place(model, "host", rows="bfloat16")
    assert_same(answers(model), answers(twin))


def test_counts_of_tokens_say_nothing_of_bigrams():
    with pytest.raises(ConfigError, match="counts are of tokens, and rows are looked up by hashed bigrams"):
        retoken.place(attached(CONFIGS["mort bigram"]), "host", counts=COUNTS)


FOLDED = ("retoken bigram", "mort bigram", "mort one by bigram", "mort both", "the recipe")


@pytest.mark.parametrize("name", FOLDED)
def test_folded(name, tmp_path):
    """In the model, as read from its folder, placed, exported: the same answers."""
    config = CONFIGS.get(name, retoken.MoRTConfig(index="bigram", num_modulators=3, top_k=1))
    model = attached(config)
    logits, _ = answers(model)
    model.save_pretrained(tmp_path / "model")
    rows = model.retoken.layers["0"].table.weight.detach().clone()
    folded = retoken.fold(model)
    assert torch.equal(rows, folded.retoken.layers["0"].table.weight) != config.folds_rows
    wanted = answers(folded)
    assert_close("logits", logits, wanted[0], units=256)
    folded.save_pretrained(tmp_path / "folded")
    write_artifact(tmp_path / "model", tmp_path / "served", fold=True)
    for other in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "folded"),
        retoken.load(tmp_path / "folded", "host"),
        retoken.load(tmp_path / "served"),
    ):
        assert_same(answers(other), wanted)
    retoken.place(folded, "disk", path=tmp_path / "rows.safetensors", verify=True)
    assert_same(answers(folded), wanted)


def test_a_gate_by_the_norm_of_a_sum_cannot_be_folded(tmp_path):
    model = attached(CONFIGS["retoken both"])
    model.save_pretrained(tmp_path / "model")
    for act in (
        lambda: retoken.fold(model),
        lambda: write_artifact(tmp_path / "model", tmp_path / "f", fold=True),
    ):
        with pytest.raises(ConfigError, match="gates by the norm of a sum, which no row holds; accepted"):
            act()
    assert not (tmp_path / "f").exists()


def test_rivals_are_refused():
    with pytest.raises(ConfigError, match="has type 'bigram'; accepted: retoken or mort"):
        retoken.place(attached(BigramConfig()), "host")
