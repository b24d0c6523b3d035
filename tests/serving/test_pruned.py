"""Pruned rows: the resident model with those rows zeroed, from fewer bytes, and refusals by name."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

import retoken
from retoken.errors import CheckpointError, ConfigError
from retoken.serving import PackedFile
from retoken.serving.artifact import write_artifact
from retoken.testing import VOCAB, aligned, token_ids

KEPT = torch.arange(VOCAB) % 3 != 1


@torch.no_grad()
def logits(model):
    return aligned(model)(input_ids=token_ids(3, 11)).logits


def zeroed(model):
    with torch.no_grad():
        for module in retoken.modulators(model).values():
            module.table.weight[~KEPT] = 0
    return model


@pytest.fixture
def artifact(build, tmp_path):
    """Saves a model and writes a pruned artefact of it."""

    def write(name="mort", kept=KEPT, **options) -> Path:
        build(name).save_pretrained(tmp_path / "model")
        write_artifact(tmp_path / "model", tmp_path / "pruned", kept=kept, **options)
        return tmp_path / "pruned"

    return write


@pytest.mark.parametrize("tables", ["device", "host", "disk"])
def test_it_computes_what_the_model_with_zero_rows_does(build, kind, artifact, tables):
    wanted = logits(zeroed(build(kind)))
    assert torch.equal(wanted, logits(retoken.load(artifact(kind), tables)))
    assert not torch.equal(wanted, logits(build(kind)))


@pytest.mark.parametrize("rows", ["bfloat16", "int8", "float8_e4m3"])
@pytest.mark.parametrize("fold", [False, True])
def test_so_do_rounded_and_folded_rows(build, artifact, rows, fold):
    model = zeroed(build("retoken"))
    if fold:
        retoken.fold(model)
    retoken.place(model, "host", rows=rows)
    assert torch.equal(logits(model), logits(retoken.load(artifact("retoken", rows=rows, fold=fold))))


def test_a_cascade_holds_records_not_tokens(build, artifact):
    folder, counts = artifact("mort"), torch.arange(VOCAB)
    size = PackedFile(folder / "rows.safetensors").layout.record_bytes
    model = retoken.load(folder, "disk", budget={"host": 20 * size}, counts=counts)
    assert torch.equal(logits(zeroed(build("mort"))), logits(model))
    # The zero record is the most read one, so it is in the fast tier with the 19 most frequent tokens' own.
    host, disk = model.retoken.source.placement.tiers
    assert (host.tokens, disk.tokens) == (19 + int((~KEPT).sum()), int(KEPT.sum()) - 19)
    assert (host.bytes, disk.bytes) == (20 * size, (int(KEPT.sum()) + 1) * size)


def test_the_file_holds_the_kept_rows_and_one_zero_record(build, artifact):
    folder = artifact("mort")
    tensors = safetensors.torch.load_file(folder / "rows.safetensors")
    records, numbers = tensors["retoken.rows"], tensors["retoken.numbers"]
    assert records.shape[0] == int(KEPT.sum()) + 1
    assert torch.equal(numbers[:VOCAB] > 0, KEPT) and not numbers[VOCAB:].any()
    file = PackedFile(folder / "rows.safetensors")
    assert torch.equal(file.kept, KEPT) and file._start % 4096 == 0
    rows = file.of_tokens(torch.arange(VOCAB))
    for layer, module in retoken.modulators(zeroed(build("mort"))).items():
        assert torch.equal(module.lookup(torch.arange(VOCAB)), file.layout.decode(rows, layer, torch.float32))


def test_fetched_rows_are_verified_against_the_folder_they_were_made_of(build, artifact, tmp_path):
    model = retoken.load(artifact("retoken"), "disk", verify=tmp_path / "model")
    assert torch.equal(logits(zeroed(build("retoken"))), logits(model))
    build("retoken", seed=2).save_pretrained(tmp_path / "other")
    model = retoken.load(tmp_path / "pruned", "host", verify=tmp_path / "other")
    with pytest.raises(CheckpointError, match="differ from those they were made of"):
        logits(model)


@pytest.mark.parametrize("kept", [torch.zeros(VOCAB, dtype=torch.bool), torch.ones(VOCAB, dtype=torch.bool)])
def test_none_and_all_are_kept_too(build, artifact, kept):
    model = build("retoken")
    with torch.no_grad():
        for module in retoken.modulators(model).values():
            module.table.weight[~kept] = 0
    assert torch.equal(logits(model), logits(retoken.load(artifact("retoken", kept=kept))))


def test_versions_that_know_no_pruning_refuse_it_and_whole_files_stay_as_they_were(artifact, tmp_path):
    def version(path):
        data = path.read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return header["__metadata__"]["format_version"]

    folder = artifact("retoken")
    assert version(folder / "rows.safetensors") == "2"
    retoken.pack(tmp_path / "model", tmp_path / "whole")
    assert version(tmp_path / "whole") == "1"


def test_a_changed_record_or_number_is_told(artifact):
    folder = artifact("retoken")
    path, file = folder / "rows.safetensors", PackedFile(folder / "rows.safetensors")
    whole = path.read_bytes()
    for place, told in (
        (file._start + 5, "tokens without rows was changed"),
        (file._start - 4096 + 40, "do not fit its fingerprint|accepted: 0.."),
    ):
        data = bytearray(whole)
        data[place] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=told):
            PackedFile(path)
    path.write_bytes(whole[:-64])
    with pytest.raises(CheckpointError, match="truncated or changed"):
        PackedFile(path)


def test_pruned_rows_are_refused_where_they_cannot_be(build, artifact, tmp_path):
    folder = artifact("retoken")
    with pytest.raises(CheckpointError, match=r"rows of some tokens only; accepted: retoken\.load"):
        retoken.place(build("retoken"), "disk", path=folder / "rows.safetensors")
    model = retoken.load(folder, "host")
    with pytest.raises(CheckpointError, match="or pruned, and cannot be replaced"):
        model.retoken.source.replace(0, torch.zeros(VOCAB, 32))
    with pytest.raises(ConfigError, match="accepted: a bool for each of 131 tokens"):
        retoken.pack(tmp_path / "model", tmp_path / "x", kept=torch.ones(7, dtype=torch.bool))
    assert not (tmp_path / "x").exists()
