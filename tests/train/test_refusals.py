"""Bad input to a run: a named error of one line, and nothing lost or half-written."""

import errno
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
import torch

import retoken
from retoken.checkpoint import newest, storage
from retoken.errors import AttachError, CheckpointError, ConfigError, DataError, RetokenError, TrainingError
from retoken.train.loop import train


def refusal(config, kind: type[RetokenError]) -> str:
    with pytest.raises(kind) as caught:
        train(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def part(make, monkeypatch):
    """A run that stopped behind its checkpoint of step 8."""

    def stop(event):
        if event["kind"] == "train" and event["step"] == 10:
            raise RuntimeError("power cut")

    config = make(checkpoint_every=4, variant="retoken")
    with pytest.raises(RuntimeError):
        train(config, on_event=stop)
    return config


def test_no_store(make, tmp_path):
    assert "does not exist; make it with `retoken prepare" in refusal(make(data=tmp_path / "none"), DataError)
    assert not (tmp_path / "run").exists()


def test_a_store_too_small_to_train_on(make, tmp_path):
    message = refusal(make(batch_size=4000), DataError)
    assert (
        "split train has" in message
        and "windows of 17 (context_length + 1); accepted: at least 4000" in message
    )
    assert not (tmp_path / "run").exists()


def test_a_held_out_split_shorter_than_a_window(make, store):
    from retoken.data.tokens import TokenStore

    held_out = len(TokenStore.open(store).split("val"))
    message = refusal(make(context_length=held_out, batch_size=1), DataError)
    assert f"split val has {held_out} tokens, 0 windows of {held_out + 1}" in message


def test_a_context_longer_than_the_backbone_s_positions(make, tmp_path):
    message = refusal(make(context_length=200, batch_size=2), ConfigError)
    assert message == "context_length is 200; accepted: up to the backbone's 128 positions"
    assert not (tmp_path / "run").exists(), "the folder is still free for the mended command"


def test_an_unknown_preset(make):
    assert "accepted: dense-s" in refusal(make(preset="cpu-xxs"), ConfigError)


def test_a_delay_deeper_than_the_backbone(make):
    modulator = retoken.MoRTConfig(injection_delay=3)
    assert "injection_delay is 3" in refusal(make(variant="mort", modulator=modulator), ConfigError)


def test_a_folder_without_a_model(make, tmp_path):
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}: not loadable as a model" in refusal(
        make(model=str(tmp_path / "empty")), CheckpointError
    )


def test_a_truncated_pretrained_model(make, gpt2_with_dropout):
    weights = gpt2_with_dropout / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    assert "not loadable as a model" in refusal(make(model=str(gpt2_with_dropout)), CheckpointError)


def test_a_pretrained_model_that_lacks_a_weight(make, gpt2_with_dropout):
    from safetensors.torch import load_file, save_file

    weights = gpt2_with_dropout / "model.safetensors"
    tensors = load_file(weights)
    del tensors["transformer.h.1.ln_1.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    message = refusal(make(model=str(gpt2_with_dropout)), CheckpointError)
    assert "missing keys, first transformer.h.1.ln_1.weight" in message


def test_a_store_with_more_token_ids_than_the_model(make, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "small"
    GPT2LMHeadModel(GPT2Config(vocab_size=200, n_embd=32, n_layer=1, n_head=2)).save_pretrained(folder)
    assert f"300 token ids; accepted: up to the 200 of model {folder}" in refusal(
        make(model=str(folder)), DataError
    )


def test_a_store_of_another_tokenizer(make, gpt2_with_dropout, tmp_path):
    from retoken.data.config import PrepareConfig
    from retoken.data.prepare import prepare

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(40):
        (corpus / f"{number}.txt").write_text(
            " ".join(f"entirely other words {number * i}" for i in range(200))
        )
    prepare(
        PrepareConfig(corpus=str(corpus), out=tmp_path / "other", vocab_size=300, val_fraction=0.2, workers=1)
    )
    shutil.copytree(tmp_path / "other" / "tokenizer", gpt2_with_dropout, dirs_exist_ok=True)
    message = refusal(make(model=str(gpt2_with_dropout)), DataError)
    assert "tokenized by another tokenizer than" in message and "has id" in message
    config = make(
        model=str(gpt2_with_dropout), data=tmp_path / "other", out=tmp_path / "fits", steps=1, eval_tokens=0
    )
    train(config)


def test_a_family_that_cannot_carry_tables(make, tmp_path):
    from transformers import OPTConfig, OPTForCausalLM

    folder = tmp_path / "opt"
    config = OPTConfig(vocab_size=300, hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2)
    OPTForCausalLM(config).save_pretrained(folder)
    assert "'opt' is not a known family" in refusal(make(model=str(folder), variant="retoken"), AttachError)


@pytest.mark.parametrize(
    "options, name",
    [
        ({"lr": 1e-4}, "lr 0.003, not 0.0001"),
        ({"seed": 1}, "seed 0, not 1"),
        ({"variant": "mort"}, "variant 'retoken', not 'mort'"),
        ({"modulator": retoken.ReTokenConfig(norm="l2")}, "modulator.norm 'rms', not 'l2'"),
        ({"steps": 20}, "steps 12, not 20"),
    ],
)
def test_a_folder_of_another_run_is_refused_by_the_field_that_differs(make, part, options, name):
    before = sorted(path.stat().st_mtime_ns for path in part.out.rglob("*") if path.name != ".lock")
    values = {"checkpoint_every": 4, "variant": "retoken"} | options
    message = refusal(make(**values), TrainingError)
    assert f"is of a run with {name}; accepted: that, or another out" in message
    assert sorted(path.stat().st_mtime_ns for path in part.out.rglob("*") if path.name != ".lock") == before


def test_options_that_change_no_result_may_differ(make, part):
    assert train(make(variant="retoken", checkpoint_every=3, keep=1, threads=2)).steps == 12


def test_a_folder_of_a_run_on_other_data(make, part, store, tmp_path):
    other = tmp_path / "other-store"
    shutil.copytree(store, other)
    assert train(make(variant="retoken", data=other, out=tmp_path / "moved")).steps == 12
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["notes"] = ["changed"]
    (other / "manifest.json").write_text(json.dumps(manifest))
    assert "is of a run on other data than" in refusal(make(variant="retoken", data=other), TrainingError)


def test_a_folder_that_holds_something_else(make, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    assert "holds something else; accepted: a new or empty folder" in refusal(make(), TrainingError)
    (tmp_path / "file").write_text("precious")
    assert "cannot write (File exists)" in refusal(make(out=tmp_path / "file"), TrainingError)
    assert (tmp_path / "run" / "thesis.tex").read_text() == (tmp_path / "file").read_text() == "precious"


def test_a_broken_config_file(make, part):
    (part.out / "config.json").write_text('{"train": ')
    assert "config.json: not readable as JSON" in refusal(part, CheckpointError)
    (part.out / "config.json").write_text("[1]")
    assert "config.json: holds a list; expected an object" in refusal(part, CheckpointError)


def test_two_processes_in_one_folder(make):
    config, messages = make(log_every=1), []

    def second(event):
        if event["kind"] == "train" and event["step"] == 2:
            thread = threading.Thread(target=lambda: messages.append(refusal(config, TrainingError)))
            thread.start()
            thread.join()

    train(config, on_event=second)
    assert messages == [f"out {config.out}: another process is training there; accepted: one at a time"]


@pytest.mark.parametrize("name", ["shard-00001-of-00001.safetensors", "index.json", "config.json"])
def test_a_truncated_checkpoint_names_the_file_and_going_back_one_works(part, name):
    newest = part.out / "checkpoints" / "step-000008"
    size = (newest / name).stat().st_size
    os.truncate(newest / name, size // 2)
    message = refusal(part, CheckpointError)
    assert message == (
        f"{newest / name} has {size // 2} bytes, {size} were written; "
        f"step-000004 is whole: delete {newest} to go on from it"
    )
    shutil.rmtree(newest)
    assert train(part).steps == 12


def test_a_checkpoint_that_lacks_a_file(part):
    shard = part.out / "checkpoints" / "step-000008" / "shard-00001-of-00001.safetensors"
    shard.unlink()
    assert f"{shard} is missing; step-000004 is whole" in refusal(part, CheckpointError)


def test_a_checkpoint_with_damaged_bytes(part):
    shard = part.out / "checkpoints" / "step-000008" / "shard-00001-of-00001.safetensors"
    with shard.open("r+b") as file:
        file.seek(-1000, os.SEEK_END)
        file.write(b"\xff" * 3)
    assert f"{shard} is damaged (crc32 " in refusal(part, CheckpointError)


def test_a_foreign_state_file(part):
    state = part.out / "checkpoints" / "step-000008" / "state.json"
    state.write_text('{"step": 8}')
    assert f"{state}: not a training checkpoint's; step-000004 is whole" in refusal(part, CheckpointError)
    state.write_text("")
    assert f"{state}: not readable as JSON" in refusal(part, CheckpointError)
    state.write_text('{"format_version": 1, "step": 8, "files": {}, "state": {}}')
    assert f"{state}: format_version is 1; accepted: 2" in refusal(part, CheckpointError)


def test_a_whole_checkpoint_of_another_model(part, make, tmp_path):
    other = make(out=tmp_path / "other", checkpoint_every=8, variant="mort")
    train(other)
    newest = part.out / "checkpoints" / "step-000008"
    shutil.rmtree(newest)
    shutil.copytree(other.out / "checkpoints" / "step-000008", newest)
    shutil.copy(part.out / "checkpoints" / "step-000004" / "config.json", newest)
    manifest = json.loads((newest / "state.json").read_text())
    manifest["files"].pop("config.json")
    (newest / "state.json").write_text(json.dumps(manifest))
    message = refusal(part, CheckpointError)
    assert message == f"{newest}: holds retoken.layers.0.router, which the model lacks"


def test_metrics_shorter_than_the_checkpoint_knows(part):
    os.truncate(part.out / "metrics.jsonl", 10)
    assert "metrics.jsonl has 10 bytes; the checkpoint was written behind" in refusal(part, CheckpointError)


def test_a_disk_that_fills_while_saving_keeps_the_checkpoint_before(make, monkeypatch):
    config = make(checkpoint_every=4)
    real, calls = storage.write_tensors, []

    def full(path, *args):
        calls.append(path)
        if len(calls) == 2:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, *args)

    monkeypatch.setattr(storage, "write_tensors", full)
    good = config.out / "checkpoints" / "step-000004"
    message = refusal(config, TrainingError)
    assert message.endswith(f"step-000008: cannot write (the disk is full); last good checkpoint: {good}")
    assert [path.name for path in (config.out / "checkpoints").iterdir()] == ["step-000004"], (
        "nothing half-written"
    )
    monkeypatch.undo()
    assert train(config).steps == 12


def mounted(folder: Path, size: str) -> bool:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


def test_a_disk_that_really_fills(make, tmp_path):
    """On a file system of 7 MB, where one checkpoint of 3 MB fits and the next does not."""
    small = tmp_path / "small"
    if not mounted(small, "7m"):
        pytest.skip("needs the right to mount a small file system")
    try:
        config = make(out=small / "run", checkpoint_every=4, variant="retoken", keep=2)
        message = refusal(config, TrainingError)
        assert "cannot write (the disk is full)" in message
        assert newest(config.out / "checkpoints").step in (4, 8)
        assert not list((config.out / "checkpoints").glob(".*"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_compile_without_a_compiler(make, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "compile is 'on' without a C++ compiler" in refusal(make(compile="on"), ConfigError)


def test_a_gpu_that_is_not_there(make):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "device is 'cuda', and PyTorch finds no GPU" in refusal(make(device="cuda"), ConfigError)
