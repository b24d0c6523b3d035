"""The packed file: round trip, refusals by name, and what it keeps resident."""

import json
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

import retoken
from retoken.bench.decode import records
from retoken.errors import CheckpointError
from retoken.serving import PackedFile
from retoken.serving.layout import RecordLayout
from retoken.serving.packed import sampled
from retoken.testing import VOCAB, token_ids


@pytest.fixture
def packed(build, tmp_path):
    """A model folder and the packed file made of it."""
    build("mort").save_pretrained(tmp_path / "model")
    retoken.pack(tmp_path / "model", tmp_path / "rows.safetensors")
    return tmp_path / "rows.safetensors"


def test_a_folder_and_a_model_pack_to_the_same_bytes(build, packed, tmp_path):
    retoken.place(build("mort"), "disk", path=tmp_path / "other")
    assert packed.read_bytes() == (tmp_path / "other").read_bytes()


def test_folders_in_several_files_pack_to_the_same_bytes(build, packed, tmp_path):
    build("mort").save_pretrained(tmp_path / "sharded", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    size = retoken.pack(tmp_path / "sharded", tmp_path / "other")
    assert packed.read_bytes() == (tmp_path / "other").read_bytes()
    assert size == packed.stat().st_size


def test_every_row_comes_back(build, packed):
    file, ids = PackedFile(packed), torch.arange(VOCAB)
    records = file.gather(ids)
    for layer, module in retoken.modulators(build("mort")).items():
        assert torch.equal(module.lookup(ids), file.layout.decode(records, layer, torch.float32))


def test_it_is_a_safetensors_file_of_one_aligned_tensor(packed):
    tensors = safetensors.torch.load_file(packed)
    assert {k: (v.dtype, v.shape[0]) for k, v in tensors.items()} == {"retoken.rows": (torch.uint8, VOCAB)}
    first = 8 + int.from_bytes(packed.read_bytes()[:8], "little")
    assert first % 4096 == 0 and tensors["retoken.rows"].shape[1] % 64 == 0


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells")
def test_processes_share_its_pages(tmp_path, python):
    path, sizes = tmp_path / "rows", {"vocab_size": 1024, "width": 1024}
    layout = RecordLayout(**sizes, layers=(0,), rows_per_token=None, rows="float32")
    records.write(path, layout, torch.arange(1024))
    here = PackedFile(path)
    here.gather(torch.arange(1024))
    code = f"""
import re, torch
from retoken.serving import PackedFile
file = PackedFile({str(path)!r})
file.gather(torch.arange(1024))
own = open("/proc/self/smaps").read().split({str(path)!r})[1]
print(*(re.search(name + r":\\s+(\\d+) kB", own)[1] for name in ("Rss", "Pss")))
"""
    resident, proportional = (int(word) for word in python("-c", code).stdout.split())
    assert resident >= layout.bytes >> 10
    assert proportional < 0.6 * resident, "each has its own"
    here.release()


def test_nothing_is_left_of_a_file_that_failed(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        retoken.pack(tmp_path, tmp_path / "rows")
    assert list(tmp_path.iterdir()) == []


def test_missing_truncated_and_longer_files_are_refused(packed, tmp_path):
    data = packed.read_bytes()
    for name, content in {"short": data[:-64], "long": data + b"\0" * 64}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name}: {len(content)} bytes; expected {len(data)}"):
            PackedFile(tmp_path / name)
    (tmp_path / "stub").write_bytes(data[:100])
    with pytest.raises(CheckpointError, match="stub: not a packed file"):
        PackedFile(tmp_path / "stub")
    with pytest.raises(CheckpointError, match="gone: missing"):
        PackedFile(tmp_path / "gone")


def test_foreign_files_are_refused(packed, tmp_path):
    safetensors.torch.save_file({"a": torch.ones(3)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match=r"foreign: format is None; accepted: 'retoken\.rows'"):
        PackedFile(tmp_path / "foreign")
    (tmp_path / "text").write_text(json.dumps({"hello": "world"}))
    with pytest.raises(CheckpointError, match="text: not a packed file"):
        PackedFile(tmp_path / "text")


def test_a_newer_format_is_refused(packed, tmp_path):
    newer = packed.read_bytes().replace(b'"format_version":"1"', b'"format_version":"3"', 1)
    (tmp_path / "newer").write_bytes(newer)
    with pytest.raises(CheckpointError, match="format_version is 3; accepted: 1, 2"):
        PackedFile(tmp_path / "newer")


def test_a_change_is_told_at_the_start_or_when_it_is_read(build, packed):
    file = PackedFile(packed)
    silent = next(i for i in range(3, VOCAB) if i not in sampled(VOCAB))
    start, size = file._start, file.layout.record_bytes
    for token, where in ((silent, "read"), (0, "start")):
        data = bytearray(packed.read_bytes())
        data[start + token * size + 5] ^= 1
        packed.write_bytes(data)
        if where == "start":
            with pytest.raises(CheckpointError, match="token 0 was changed"):
                PackedFile(packed)
            continue
        model, ids = build("mort"), torch.tensor([[5, token]])
        retoken.place(model, "disk", path=packed)
        told = rf"rows\.safetensors: the record of token {token} was changed"
        with pytest.raises(CheckpointError, match=told):
            model(input_ids=ids)
        with torch.no_grad(), pytest.raises(CheckpointError, match=told):
            model(input_ids=ids)
        many = torch.tensor([[5, token] * 32])
        assert model.retoken.source.shelf.wanted(many).files == 2, "records are asked for and checked once"
        with torch.no_grad(), pytest.raises(CheckpointError, match=told):
            model(input_ids=many)
        first = retoken.modulators(model)[0]  # on its own: the pass never comes to the last layer
        with torch.no_grad(), pytest.raises(CheckpointError, match=told):
            first(torch.zeros(1, 2, first.scale.shape[0]), ids)


def test_a_record_is_looked_at_once_and_again_when_the_file_was_written_to(packed):
    with torch.device("meta"):  # models are built under other devices
        file, looked = PackedFile(packed), []
    a, b, c = [i for i in range(VOCAB) if i not in sampled(VOCAB)][:3]  # the others were looked at already
    inner, at = file._check_all, file._start + a * file.layout.record_bytes + 5
    file._check_all = lambda ids: (looked.append(ids.tolist()), inner(ids))

    def flip():
        time.sleep(0.02)  # a file's time is that of the last clock tick
        with packed.open("r+b") as out:
            out.seek(at)
            byte = out.read(1)[0]
            out.seek(at)
            out.write(bytes([byte ^ 1]))

    for ids in ([a, b], [a, b, c], [c, a]):
        file.gather(torch.tensor(ids))
    assert looked == [[a, b], [c]]
    flip()
    for _ in range(2):
        file.gather(torch.tensor([b, c]))
        with pytest.raises(CheckpointError, match=f"the record of token {a} was changed"):
            file.gather(torch.tensor([b, a]))
    assert looked[2:] == [[b, c], [a], [a]]
    flip()
    file.gather(torch.tensor([b, a]))
    assert looked[5:] == [[b, a]]


def test_files_of_other_models_are_refused(build, packed):
    with pytest.raises(CheckpointError, match="its rows are not this model's"):
        retoken.place(build("mort", seed=2), "disk", path=packed)
    with pytest.raises(CheckpointError, match=r"of another model: .*rows_per_token"):
        retoken.place(build("retoken"), "disk", path=packed)
    with pytest.raises(CheckpointError, match="'folded': False"):
        retoken.place(build("mort", folded=True), "disk", path=packed)
    with pytest.raises(CheckpointError, match="rows are float32; asked for: int8"):
        retoken.place(build("mort"), "disk", path=packed, rows="int8")


def test_few_pages_stay_resident(packed):
    file = PackedFile(packed, resident_bytes=1 << 20)
    wanted = file.gather(token_ids(1, 5)[0])
    for seed in range(40):
        file.gather(token_ids(1, 5, seed=seed)[0].unique())
        assert file._touched <= 1 << 20
    assert torch.equal(wanted, file.gather(token_ids(1, 5)[0]))


def test_a_record_that_is_read_again_counts_once_until_pages_go(packed):
    file, ids = PackedFile(packed), token_ids(1, 5)[0].unique()
    file.release()  # it was looked into when it was opened
    seen = []
    for _ in range(2):
        assert file._touched == 0
        for _ in range(2):
            file.gather(ids)
            seen.append(file._touched)
        file.release()
    assert len(set(seen)) == 1 and seen[0] >= len(ids) * file.layout.record_bytes


@pytest.mark.parametrize("wrong", [0, 700, 1999])
def test_threads_that_share_a_check_tell_the_first_record_that_was_changed(tmp_path, wrong):
    layout = RecordLayout(vocab_size=2000, layers=(0, 1), rows_per_token=4, width=64, rows="float32")
    tokens = torch.arange(2000)
    records.write(tmp_path / "rows", layout, tokens)
    file = PackedFile(tmp_path / "rows")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        file.check(tokens)
        with (tmp_path / "rows").open("r+b") as changed:
            for token in (wrong, 1999):
                changed.seek(file._start + token * layout.record_bytes)
                changed.write(b"\x7f\x7f")
        with pytest.raises(CheckpointError, match=f"the record of token {wrong} was changed"):
            file.check(tokens)
    finally:
        torch.set_num_threads(before)
