"""Saving and loading through transformers: pinned keys, bit-equal weights, the backbone's own names."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import retoken
from retoken.attach.families import FAMILIES
from retoken.testing import VOCAB, WIDTH, aligned, randomize, tiny_config, tiny_model, token_ids


def _saved(folder):
    """Every tensor of a saved checkpoint, sharded or not."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def _assert_same(a, b):
    assert a.keys() == b.keys()
    assert [k for k, v in a.items() if not torch.equal(v, b[k]) or v.dtype != b[k].dtype] == []


def _attached(family, config, **kwargs):
    model = retoken.attach(tiny_model(family, **kwargs), config)
    randomize(model.retoken)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["retoken", "mort"])
def test_round_trip_with_pinned_keys(family, kind, configs, tmp_path):
    config = configs[kind]
    tiny_model(family).save_pretrained(tmp_path / "plain")
    model = _attached(family, config)
    model.save_pretrained(tmp_path / "attached")
    saved, plain = _saved(tmp_path / "attached"), _saved(tmp_path / "plain")

    ours = {k: tuple(v.shape) for k, v in saved.items() if k.startswith("retoken.")}
    rows = (VOCAB, WIDTH) if kind == "retoken" else (VOCAB, 4, WIDTH)
    expected = {}
    for layer in range(3):
        expected |= {f"retoken.layers.{layer}.table": rows, f"retoken.layers.{layer}.scale": (WIDTH,)}
        if kind == "mort":
            expected[f"retoken.layers.{layer}.router"] = (4, WIDTH)
    assert ours == expected
    _assert_same(plain, {k: v for k, v in saved.items() if k not in ours})

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "attached")
    _assert_same(model.state_dict(), loaded.state_dict())
    assert type(loaded) is type(model)
    ids = token_ids()
    assert torch.equal(model(input_ids=ids).logits, aligned(loaded)(input_ids=ids).logits)
    loaded.save_pretrained(tmp_path / "again")
    _assert_same(saved, _saved(tmp_path / "again"))


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "deepseek_v3"])
def test_a_plain_checkpoint_loaded_then_attached_keeps_the_backbones_names(family, configs, tmp_path):
    tiny_model(family).save_pretrained(tmp_path / "plain")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    conversions = loaded._weight_conversions
    retoken.detach(retoken.attach(loaded, configs["mort"]))
    assert loaded._weight_conversions == conversions
    retoken.attach(loaded, configs["mort"]).save_pretrained(tmp_path / "attached")
    saved = _saved(tmp_path / "attached")
    ours = {k for k in saved if k.startswith("retoken.")}
    assert len(ours) == 9 and not any(".weight" in k for k in ours)
    _assert_same(_saved(tmp_path / "plain"), {k: v for k, v in saved.items() if k not in ours})


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_detached_after_loading_saves_as_the_backbone(family, configs, tmp_path):
    tiny_model(family).save_pretrained(tmp_path / "plain")
    _attached(family, configs["mort"]).save_pretrained(tmp_path / "attached")
    model = retoken.detach(AutoModelForCausalLM.from_pretrained(tmp_path / "attached"))
    model.save_pretrained(tmp_path / "detached")
    _assert_same(_saved(tmp_path / "plain"), _saved(tmp_path / "detached"))
    written = json.loads((tmp_path / "detached" / "config.json").read_text())
    assert written == json.loads((tmp_path / "plain" / "config.json").read_text())


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_sharded(family, configs, tmp_path):
    model = _attached(family, configs["mort"])
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert "retoken.layers.0.table" in index["weight_map"]
    _assert_same(model.state_dict(), AutoModelForCausalLM.from_pretrained(tmp_path).state_dict())


def test_config_json_says_what_is_attached(configs, tmp_path):
    _attached("llama", configs["mort-delay"]).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["model_type"] == "retoken_llama"
    assert written["architectures"] == ["ReTokenLlamaForCausalLM"]
    modulator = written["retoken"]["modulator"]
    assert (
        modulator["type"] == "mort" and modulator["format_version"] == 1 and modulator["injection_delay"] == 1
    )
    assert retoken.config_from_dict(modulator) == configs["mort-delay"]


def test_tied_embeddings_stay_tied(configs, tmp_path):
    model = _attached("llama", configs["retoken"], tie_word_embeddings=True)
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in _saved(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    ids = token_ids()
    assert torch.equal(model(input_ids=ids).logits, aligned(loaded)(input_ids=ids).logits)


def test_dtype_is_kept_and_can_be_asked_for(configs, tmp_path):
    model = _attached("llama", configs["mort"], dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert all(v.dtype == torch.bfloat16 for v in _saved(tmp_path).values())
    _assert_same(model.state_dict(), AutoModelForCausalLM.from_pretrained(tmp_path).state_dict())
    wide = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


def test_from_config_makes_an_attached_model(configs):
    config = _attached("qwen3", configs["mort"]).config
    model = AutoModelForCausalLM.from_config(config)
    assert sorted(retoken.modulators(model)) == [0, 1, 2]
    assert torch.equal(retoken.modulators(model)[1].scale, torch.ones(WIDTH))
    assert 0.01 < retoken.modulators(model)[1].table.weight.std() < 0.03
    assert model(input_ids=token_ids()).logits.isfinite().all()


def test_initial_values_come_from_the_config():
    config = retoken.ReTokenConfig(init_scale=0.25, init_std=0.5)
    first = retoken.attach(tiny_model("llama"), config)
    for model in (first, AutoModelForCausalLM.from_config(first.config)):
        for module in retoken.modulators(model).values():
            assert torch.equal(module.scale, torch.full((WIDTH,), 0.25))
            assert 0.45 < module.table.weight.std() < 0.55


_LOAD_ALL = """
import json, sys, torch
import retoken
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

root = Path(sys.argv[1])
retoken.register_family("stablelm")
ids = torch.tensor(json.loads(sys.argv[2]))
torch.set_num_threads(1)  # as in the tests: it alone decides some kernels' order of summation
logits, kernels = {}, {}
for folder in sorted(p for p in root.iterdir() if p.is_dir()):
    model = AutoModelForCausalLM.from_pretrained(folder)
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    kernels[folder.name] = [model.config._attn_implementation, model.config._experts_implementation]
    logits[folder.name] = model(input_ids=ids).logits.detach().contiguous()
save_file(logits, root / "logits.safetensors")
print(json.dumps(kernels))
"""


def test_a_fresh_process_loads_every_family(configs, tmp_path):
    """Nothing of this process's registrations may be needed; a caller's own family needs one line."""
    ids, expected, kernels = token_ids(), {}, {}
    for i, family in enumerate([*FAMILIES, "stablelm"]):
        config = configs["retoken" if i % 2 else "mort-delay"]
        own = retoken.Family() if family == "stablelm" else None
        model = retoken.attach(tiny_model(family), config, family=own)
        randomize(model.retoken)
        model.save_pretrained(tmp_path / family)
        expected[family] = model(input_ids=ids).logits.detach()
        kernels[family] = [model.config._attn_implementation, model.config._experts_implementation]
    run = [sys.executable, "-c", _LOAD_ALL, str(tmp_path), json.dumps(ids.tolist())]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == kernels
    got = load_file(tmp_path / "logits.safetensors")
    _assert_same(expected, got)


def test_an_unused_config_of_the_backbone_is_not_touched():
    shared = tiny_config("llama")
    before = copy.deepcopy(shared.to_dict())
    model = LlamaForCausalLM(shared)
    assert model.config is shared
    retoken.attach(model, retoken.ReTokenConfig())
    assert shared.to_dict() == before
    assert type(AutoModelForCausalLM.from_config(shared)).__name__ == "LlamaForCausalLM"


def test_a_checkpoint_written_by_hand_with_the_pinned_keys_loads(configs, tmp_path):
    """The keys are the contract: another program may write them."""
    model = _attached("llama", configs["retoken"])
    model.save_pretrained(tmp_path)
    tensors = _saved(tmp_path)
    tensors["retoken.layers.1.table"] = torch.full((VOCAB, WIDTH), 0.5)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(retoken.modulators(loaded)[1].table.weight, torch.full((VOCAB, WIDTH), 0.5))
