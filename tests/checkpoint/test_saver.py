"""Saving beside training: what is written is what was there, one at a time, each whole or absent."""

import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch

from retoken.checkpoint import Peers, Saver, host_copy, newest, storage
from retoken.checkpoint.folders import all_paths, drop, prune, read
from retoken.errors import CheckpointError, TrainingError

CPU = torch.device("cpu")
SHARD = "shard-00001-of-00001.safetensors"


class SlowDisk:
    """Writes files only while it is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.writing, self.paths = threading.Event(), threading.Event(), []
        self._real = storage.write_tensors
        monkeypatch.setattr(storage, "write_tensors", self._write)

    def _write(self, path: Path, *args):
        self.paths.append(path)
        self.writing.set()
        assert self.gate.wait(60)
        return self._real(path, *args)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowDisk:
    return SlowDisk(monkeypatch)


def test_training_goes_on_while_the_state_of_the_save_is_written(trained, tmp_path, slow):
    model, optimizer = trained()
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    moment = optimizer.state[model.model.embed_tokens.weight]["exp_avg"].clone()
    notes = {"losses": [1.0, 2.0]}
    saver = Saver(root=tmp_path, keep=1)
    saver.save(1, host_copy(model, optimizer, {}, CPU, Peers()), notes)
    assert slow.writing.wait(60)
    for parameter in model.parameters():  # what training does meanwhile
        parameter.data.zero_()
        optimizer.state[parameter]["exp_avg"].fill_(7)
    notes["losses"].append(3.0)
    assert saver.finished() == [] and all_paths(tmp_path) == []
    slow.gate.set()
    saver.wait()
    assert saver.finished() == [tmp_path / "step-000001"] and saver.finished() == []
    found = newest(tmp_path)
    tensors = found.tensors().read_all()
    assert torch.equal(tensors["optimizer.model.embed_tokens.weight.exp_avg"], moment)
    for name, value in expected.items():
        key = name.replace("table.weight", "table").replace("router.weight", "router")
        assert torch.equal(tensors[key], value), name
    assert found.state == {"losses": [1.0, 2.0]}


def test_the_next_save_waits_for_the_one_before(trained, tmp_path, slow):
    model, optimizer = trained()
    saver, order = Saver(root=tmp_path, keep=2), []
    saver.save(1, host_copy(model, optimizer, {}, CPU, Peers()), {})

    def second():
        saver.save(2, host_copy(model, optimizer, {}, CPU, Peers()), {})
        order.append("second began")
        saver.wait()

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.2)
    assert order == [] and len(slow.paths) == 1
    slow.gate.set()
    thread.join()
    assert saver.finished() == [tmp_path / "step-000001", tmp_path / "step-000002"]


def test_the_last_good_checkpoint_is_the_one_being_written(trained, tmp_path, slow):
    model, optimizer = trained()
    saver = Saver(root=tmp_path, keep=2)
    saver.save(1, host_copy(model, optimizer, {}, CPU, Peers()), {})
    threading.Timer(0.2, slow.gate.set).start()
    assert saver.last_good() == tmp_path / "step-000001"


def test_a_failure_comes_out_at_the_next_call_and_what_was_there_stays(trained, tmp_path, monkeypatch):
    model, optimizer = trained()
    saver = Saver(root=tmp_path, keep=2)
    chunks = host_copy(model, optimizer, {}, CPU, Peers())
    saver.save(1, chunks, {})
    saver.wait()

    def refuse(path, *args):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "write_tensors", refuse)
    saver.save(2, chunks, {})
    message = f"{tmp_path}/step-000002: cannot write .the disk is full.; last good checkpoint: .*step-000001$"
    with pytest.raises(TrainingError, match=message):
        while True:
            saver.finished()
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]
    saver.save(3, chunks, {})
    saver.wait()
    assert newest(tmp_path).step == 3


def test_a_state_that_json_cannot_hold_leaves_nothing(trained, tmp_path):
    model, optimizer = trained()
    saver = Saver(root=tmp_path, keep=2)
    saver.save(1, host_copy(model, optimizer, {}, CPU, Peers()), {"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        saver.wait()
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_stay(trained, tmp_path):
    model, optimizer = trained()
    saver = Saver(root=tmp_path, keep=2)
    for step in (1, 2, 10, 9):
        saver.save(step, host_copy(model, optimizer, {}, CPU, Peers()), {})
    saver.wait()
    assert [path.name for path in all_paths(tmp_path)] == ["step-000009", "step-000010"]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_step_saved_again_replaces_the_one_before(trained, tmp_path):
    model, optimizer = trained()
    saver = Saver(root=tmp_path, keep=2)
    for value in (1, 2):
        saver.save(1, host_copy(model, optimizer, {}, CPU, Peers()), {"value": value})
    saver.wait()
    assert newest(tmp_path).state == {"value": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_what_dead_processes_left_is_removed_at_the_start(trained, tmp_path):
    model, optimizer = trained()
    saver = Saver(root=tmp_path, keep=2)
    saver.save(1, host_copy(model, optimizer, {}, CPU, Peers()), {})
    saver.wait()
    for name in (".step-000002.partial", ".step-000000.dropped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / SHARD).write_bytes(b"half")
    (tmp_path / ".mine").mkdir()
    assert newest(tmp_path).step == 1
    Saver(root=tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine", "step-000001"]


def test_a_checkpoint_loses_its_name_before_its_files(trained, tmp_path, monkeypatch):
    model, optimizer = trained()
    saver = Saver(root=tmp_path, keep=2)
    saver.save(1, host_copy(model, optimizer, {}, CPU, Peers()), {})
    saver.wait()
    seen = []
    monkeypatch.setattr("shutil.rmtree", lambda path, **options: seen.append(all_paths(tmp_path)))
    drop(tmp_path / "step-000001")
    assert seen[-1] == []
    prune(tmp_path, 1)


# Damage


@pytest.fixture
def two(trained, tmp_path):
    """Steps 4 and 8, both whole."""
    model, optimizer = trained()
    saver = Saver(root=tmp_path, keep=3, texts={"config.json": "{}\n"})
    for step in (4, 8):
        saver.save(step, host_copy(model, optimizer, {}, CPU, Peers()), {"step": step})
    saver.wait()
    return tmp_path


def fault(root: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        newest(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def offered(root: Path) -> str:
    return f"; step-000004 is whole: delete {root / 'step-000008'} to go on from it"


@pytest.mark.parametrize("name", [SHARD, "index.json", "config.json"])
@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "longer", "one bit", "unreadable"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_offered(two, name, kind):
    path = two / "step-000008" / name
    whole = path.read_bytes()
    turned = bytes([whole[len(whole) // 2] ^ 4])
    content = {
        "empty": b"",
        "truncated": whole[:-1],
        "longer": whole + b"\0",
        "one bit": whole[: len(whole) // 2] + turned + whole[len(whole) // 2 + 1 :],
    }
    if kind == "missing":
        path.unlink()
    elif kind == "unreadable":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes(content[kind])
    message = fault(two)
    assert message.startswith(f"{path} ") and message.endswith(offered(two))
    says = {"missing": "is missing", "one bit": "is damaged (crc32 "}
    assert says.get(kind, "bytes, ") in message
    drop(two / "step-000008")
    assert newest(two).step == 4


def test_a_shard_of_another_checkpoint_is_told_from_its_own(two, trained, tmp_path):
    model, optimizer = trained()
    for parameter in model.parameters():
        parameter.data.mul_(2)
    saver = Saver(root=tmp_path / "other", keep=1)
    saver.save(8, host_copy(model, optimizer, {}, CPU, Peers()), {})
    saver.wait()
    path = two / "step-000008" / SHARD
    foreign = tmp_path / "other" / "step-000008" / SHARD
    assert path.stat().st_size == foreign.stat().st_size
    path.write_bytes(foreign.read_bytes())
    assert fault(two).startswith(f"{path} is damaged (crc32 ")


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "not readable as JSON"),
        ('{"step": 8}', "not a training checkpoint's"),
        ('{"format_version": 3}', "format_version is 3; accepted: 2"),
        ("[]", "holds a list; expected an object"),
    ],
)
def test_a_broken_manifest(two, text, says):
    path = two / "step-000008" / "state.json"
    path.write_text(text)
    assert fault(two).startswith(f"{path}: {says}") and fault(two).endswith(offered(two))


def test_an_index_that_is_none_is_told_though_its_checksum_fits(two):
    path = two / "step-000008" / "index.json"
    path.write_text('{"a": {"dtype": "F99", "shape": [], "boxes": []}}')
    manifest = path.with_name("state.json")
    values = json.loads(manifest.read_text())
    values["files"].pop("index.json")
    manifest.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"index.json: not the index of a training checkpoint"):
        newest(two).tensors()


def test_the_checkpoint_offered_is_one_that_is_whole(two):
    for step in (4, 8):
        (two / f"step-00000{step}" / SHARD).unlink()
    assert fault(two).endswith(f"; no checkpoint before it is whole: delete {two} to train from the start")


def test_several_broken_ones_are_to_be_deleted_together(two, trained):
    model, optimizer = trained()
    saver = Saver(root=two, keep=3)
    saver.save(9, host_copy(model, optimizer, {}, CPU, Peers()), {})
    saver.wait()
    for step in (8, 9):
        os.truncate(two / f"step-00000{step}" / SHARD, 10)
    broken = f"{two / 'step-000008'} and {two / 'step-000009'}"
    assert fault(two).endswith(f"; step-000004 is whole: delete {broken} to go on from it")
    assert read(two / "step-000004").step == 4
