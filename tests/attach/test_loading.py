"""Loading: no second copy in memory; checkpoints that are newer, truncated or not ours are named errors."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import retoken
from retoken.errors import CheckpointError, ConfigError
from retoken.testing import randomize, tiny_config, tiny_model, token_ids

_MEASURE = """
import os, sys, torch
import retoken
from transformers import AutoModelForCausalLM

def resident(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

AutoModelForCausalLM.from_pretrained(sys.argv[1])  # imports and caches are not the second copy
open("/proc/self/clear_refs", "w").write("5")  # the peak is counted from here
before = resident("VmRSS")
model = AutoModelForCausalLM.from_pretrained(sys.argv[2])
loaded = resident("VmHWM") - before
touched = sum(float(p.sum()) for p in model.parameters())
model(input_ids=torch.tensor([[1, 5, 7]]))
print(loaded, resident("VmHWM") - before)
"""


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
def test_loading_makes_no_second_copy(tmp_path):
    """Peak memory of loading and of reading every weight: the file's size and a tenth; a copy costs two."""
    vocab, width = 50_000, 512
    config = tiny_config("llama", vocab_size=vocab, hidden_size=width, num_attention_heads=4, head_dim=16)
    modulator = retoken.ReTokenConfig()
    with torch.device("meta"):
        model = retoken.attach(AutoModelForCausalLM.from_config(config), modulator)
    model.config.save_pretrained(tmp_path / "large")
    tensors = {k: torch.ones(v.shape) for k, v in model.state_dict().items()}
    tensors = {k.replace(".table.weight", ".table"): v for k, v in tensors.items()}
    save_file(tensors, tmp_path / "large" / "model.safetensors", metadata={"format": "pt"})
    del tensors
    retoken.attach(tiny_model("llama"), modulator).save_pretrained(tmp_path / "small")

    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert size > 400e6
    run = [sys.executable, "-c", _MEASURE, str(tmp_path / "small"), str(tmp_path / "large")]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded, read = (int(x) for x in done.stdout.split())
    assert loaded < 1.1 * size, f"loading took {loaded / size:.2f} times the file"
    assert read < 1.1 * size, f"loading and reading took {read / size:.2f} times the file"


@pytest.fixture
def saved(configs, tmp_path):
    """A folder with an attached tiny Llama."""
    model = retoken.attach(tiny_model("llama"), configs["mort"])
    randomize(model.retoken)
    model.save_pretrained(tmp_path)
    return tmp_path


def _refused(error, match, folder):
    with pytest.raises(error, match=match) as caught:
        AutoModelForCausalLM.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def _edit_config(folder, edit):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def test_a_newer_format_is_refused(saved):
    _edit_config(saved, lambda c: c["retoken"]["modulator"].update(format_version=2))
    _refused(ConfigError, r"format_version is 2; accepted: 1\.\.1", saved)


def test_an_option_of_a_later_version_is_refused(saved):
    _edit_config(saved, lambda c: c["retoken"]["modulator"].update(rank=8))
    _refused(ConfigError, r"option of mort is \['rank'\]", saved)


@pytest.mark.parametrize("value", [None, {}, "mort", {"modulator": {}}])
def test_a_config_that_does_not_say_what_is_attached(saved, value):
    _edit_config(saved, lambda c: c.update(retoken=value))
    _refused(CheckpointError, "field 'retoken' is .*; accepted: what save_pretrained wrote", saved)


def test_a_config_without_the_field(saved):
    _edit_config(saved, lambda c: c.pop("retoken"))
    _refused(CheckpointError, "field 'retoken' is None", saved)


def test_layers_beyond_the_backbone(saved):
    _edit_config(saved, lambda c: c["retoken"]["modulator"].update(layers=[7]))
    _refused(ConfigError, r"layers is \[7\]; accepted: 0\.\.2", saved)


@pytest.mark.parametrize("kept", [0, 4, 100, 0.5, 0.99])
def test_a_truncated_file(saved, kept):
    path = saved / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept > 1 or kept == 0 else kept * len(content))])
    _refused(CheckpointError, "a safetensors file is broken", saved)


def test_a_truncated_shard(configs, tmp_path):
    retoken.attach(tiny_model("llama"), configs["mort"]).save_pretrained(tmp_path, max_shard_size="50KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-10])
    _refused(CheckpointError, "a safetensors file is broken", tmp_path)


def test_tables_that_are_not_there(saved):
    """A backbone's weights under an attached config must not run with random rows."""
    tensors = load_file(saved / "model.safetensors")
    del tensors["retoken.layers.1.router"], tensors["retoken.layers.2.table"]
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    _refused(CheckpointError, r"retoken\.layers\.1\.router\S* is not in the checkpoint \(2 missing", saved)


@pytest.mark.parametrize("shape", [(50, 4, 32), (131, 3, 32), (131, 32)])
def test_tables_of_another_shape(saved, shape):
    tensors = load_file(saved / "model.safetensors")
    tensors["retoken.layers.1.table"] = torch.zeros(shape)
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    _refused(
        CheckpointError,
        r"retoken\.layers\.1\.table\S* is \[.*\] in the checkpoint, \[131, 4, 32\] by config",
        saved,
    )


def test_another_shape_can_be_asked_for(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros(50, 32)
    save_file(tensors, saved / "model.safetensors", metadata={"format": "pt"})
    _refused(CheckpointError, r"lm_head\.weight is \[50, 32\] in the checkpoint", saved)
    AutoModelForCausalLM.from_pretrained(saved, ignore_mismatched_sizes=True)


def test_loading_info_can_be_asked_for(saved):
    model, info = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert hasattr(model, "retoken")


def test_a_plain_checkpoint_under_its_own_config_stays_plain(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)).__name__ == "LlamaForCausalLM"


def test_the_config_alone_can_be_read(saved):
    config = AutoConfig.from_pretrained(saved)
    assert config.retoken["modulator"]["type"] == "mort" and config.hidden_size == 32


_UNKNOWING = """
import sys
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained(sys.argv[1])
"""


def test_a_program_that_does_not_know_retoken_refuses_the_checkpoint(saved):
    """Better than serving the backbone without its tables."""
    done = subprocess.run([sys.executable, "-c", _UNKNOWING, str(saved)], capture_output=True, text=True)
    assert done.returncode != 0 and "retoken_llama" in done.stderr


def test_loaded_models_train_and_generate(saved):
    model, ids = AutoModelForCausalLM.from_pretrained(saved).train(), token_ids()
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.retoken.parameters())
