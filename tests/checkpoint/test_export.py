"""Export writes, byte for byte, what `save_pretrained` writes, and never holds more than a few blocks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import retoken
from retoken.attach.families import FAMILIES
from retoken.checkpoint import Peers, Saver, described, host_copy
from retoken.checkpoint.export import export
from retoken.checkpoint.folders import read
from retoken.errors import CheckpointError, TrainingError
from retoken.testing import aligned, tiny_model, token_ids

CPU = torch.device("cpu")


def saved(root: Path, model) -> Path:
    """A checkpoint of a model and an optimizer without state."""
    saver = Saver(root=root, keep=1, texts=described(model))
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "param_names": names_of(model)}])
    saver.save(1, host_copy(model, optimizer, {}, CPU, Peers()), {})
    saver.wait()
    return root / "step-000001"


def names_of(model) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_is_exported_byte_for_byte(tmp_path, family):
    """Fused experts are split, tied embeddings are written once, large models get an index."""
    configs = {"": None, "retoken": retoken.ReTokenConfig(), "mort": retoken.MoRTConfig()}
    for (variant, config), tied in zip(configs.items(), (False, True, False), strict=True):
        model = tiny_model(family, tie_word_embeddings=tied)
        if config is not None:
            retoken.attach(model, config)
        checkpoint = read(saved(tmp_path / variant / "run", model))
        for size in ("50GB", "100KB"):
            ours, theirs = (tmp_path / variant / f"{who}-{size}" for who in ("ours", "theirs"))
            export(checkpoint, ours, max_shard_size=size)
            model.save_pretrained(theirs, max_shard_size=size)
            assert contents(ours).keys() == contents(theirs).keys()
            for name, content in contents(theirs).items():
                assert contents(ours)[name] == content, f"{variant or 'plain'}, {size}: {name}"
        again = aligned(AutoModelForCausalLM.from_pretrained(ours))
        assert torch.equal(again(input_ids=token_ids()).logits, model(input_ids=token_ids()).logits)


def test_bfloat16_rows_in_a_float32_model(tmp_path):
    model = retoken.attach(tiny_model("llama"), retoken.MoRTConfig())
    for layer in model.retoken.layers.values():
        layer.table.to(torch.bfloat16)
    export(read(saved(tmp_path / "run", model)), tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    assert contents(tmp_path / "ours") == contents(tmp_path / "theirs")


def test_the_state_of_the_optimizer_stays_behind_and_progress_is_told(trained, tmp_path):
    model, optimizer = trained()
    saver = Saver(root=tmp_path, keep=1, texts=described(model))
    saver.save(1, host_copy(model, optimizer, {}, CPU, Peers()), {})
    saver.wait()
    told = []
    done = export(
        read(tmp_path / "step-000001"), tmp_path / "out", on_progress=lambda *counts: told.append(counts)
    )
    assert done.bytes == sum(p.nbytes for p in model.parameters()) == told[-1][0] == told[-1][1]
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    model.save_pretrained(tmp_path / "theirs")
    assert contents(tmp_path / "out") == contents(tmp_path / "theirs")


def test_a_checkpoint_deleted_meanwhile_is_told_and_nothing_stays(tmp_path):
    path = saved(tmp_path / "run", retoken.attach(tiny_model("llama"), retoken.MoRTConfig()))
    found = read(path)
    shard = path / "shard-00001-of-00001.safetensors"
    with pytest.raises(CheckpointError, match=f"{shard} cannot be read .No such file"):
        export(found, tmp_path / "out", on_progress=lambda *_: shard.unlink(missing_ok=True))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_a_disk_that_takes_no_more_is_told_and_nothing_stays(tmp_path, monkeypatch):
    from retoken.checkpoint import export as room

    def refuse(*args):
        raise OSError(28, "No space left on device")

    found = read(saved(tmp_path / "run", tiny_model("llama")))
    monkeypatch.setattr(room, "write_tensors", refuse)
    with pytest.raises(TrainingError, match=r"out: cannot write \(the disk is full\)"):
        export(found, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


MEASURE = """
import resource, sys
from pathlib import Path
from retoken.checkpoint import read
from retoken.checkpoint.export import export
from transformers import LlamaForCausalLM

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

warm, large = (read(Path(path)) for path in sys.argv[1:3])
export(warm, Path(sys.argv[3]))
before = peak()
done = export(large, Path(sys.argv[4]))
print(peak() - before, done.bytes)
"""


def test_tables_need_not_fit_into_memory(tmp_path):
    """Tables of 115 MB are exported with less than 32 MB."""
    paths = []
    for name, vocab in (("small", 100), ("large", 60_000)):
        model = retoken.attach(tiny_model("llama", vocab_size=vocab), retoken.MoRTConfig(num_modulators=5))
        paths.append(saved(tmp_path / name, model))
    command = [sys.executable, "-c", MEASURE, *map(str, paths), str(tmp_path / "a"), str(tmp_path / "b")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    grown, size = map(int, done.stdout.split())
    assert size > 115e6 and grown < 32e6, f"{grown / 1e6:.0f} MB for {size / 1e6:.0f} MB"
    index = json.loads((paths[1] / "index.json").read_text())
    assert index["retoken.layers.0.table"]["shape"] == [60_000, 5, 32]
