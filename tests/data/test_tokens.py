"""Opening a store: everything that can be wrong with it is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from retoken.data.tokens import TokenStore, WindowReader
from retoken.errors import ConfigError, DataError


@pytest.fixture
def store(make, tmp_path) -> Path:
    make(shard_bytes=60_000)
    return tmp_path / "out"


def refused(path: Path, told: str, check=TokenStore.open) -> None:
    with pytest.raises(DataError) as caught:
        check(path)
    message = str(caught.value)
    assert told in message
    assert len(message.splitlines()) == 1


def edit(folder: Path, **changes) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_good_store_opens_verifies_and_reads(store):
    opened = TokenStore.open(str(store))
    opened.verify()
    split = opened.split("train")
    assert len(split) == opened.manifest.splits["train"].tokens
    batch = WindowReader(split, window=33, batch_size=4, seed=0).next_batch()
    assert batch.shape == (4, 33)
    assert int(batch.max()) < opened.manifest.vocab_size
    assert opened.token_bytes().dtype == torch.int64
    assert opened.token_counts("val").sum() == len(opened.split("val"))
    assert opened.tokenizer().eos_token_id == opened.manifest.eos_id


def test_no_folder(tmp_path):
    refused(tmp_path / "none", "does not exist; make it with `retoken prepare --out")


def test_an_empty_folder(tmp_path):
    refused(tmp_path, "is not a prepared token store: it has no manifest.json")


@pytest.mark.parametrize("content", ["", "{", "nonsense", "\x00\x01"])
def test_a_manifest_that_is_no_json(store, content):
    (store / "manifest.json").write_text(content)
    refused(store, "manifest.json is not readable JSON")


def test_a_manifest_cut_short(store):
    path = store / "manifest.json"
    path.write_text(path.read_text()[:500])
    refused(store, "truncated or foreign")


def test_a_manifest_of_something_else(store):
    (store / "manifest.json").write_text('{"name": "web app"}')
    refused(store, "is not a token store's manifest")
    (store / "manifest.json").write_text("[]")
    refused(store, "holds a JSON list, not an object")


def test_a_manifest_of_a_newer_version(store):
    edit(store, format_version=2)
    refused(store, "format_version 2; this version reads 1")


@pytest.mark.parametrize(
    "changes", [{"splits": {}}, {"splits": {"train": {}}}, {"unknown": 1}, {"splits": None}, {"notes": None}]
)
def test_a_manifest_with_other_fields(store, changes):
    edit(store, **changes)
    refused(store, "lacks or misnames a field")


def test_a_truncated_shard(store):
    path = store / "train-00001.bin"
    path.write_bytes(path.read_bytes()[:-2])
    refused(store, "train-00001.bin has")
    refused(store, "truncated or foreign")


def test_a_missing_shard(store):
    (store / "val-00000.bin").unlink()
    refused(store, "val-00000.bin cannot be read: No such file")


@pytest.mark.parametrize("name", ["token_bytes.npy", "token_counts.npy", "tokenizer/tokenizer.json"])
def test_a_missing_side_file(store, name):
    (store / name).unlink()
    refused(store, f"{name} is missing")


@pytest.mark.parametrize("name", ["train-00001.bin", "val-00000.offsets.npy", "token_counts.npy"])
def test_a_flipped_bit_is_found_by_verify(store, name):
    content = bytearray((store / name).read_bytes())
    content[-3] ^= 1
    (store / name).write_bytes(content)
    opened = TokenStore.open(store)
    refused(store, f"{name} has sha256", lambda _: opened.verify())


def test_another_tokenizer_is_found_by_verify(store):
    path = store / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    refused(store, "is not the tokenizer of this store", lambda _: TokenStore.open(store).verify())


@pytest.mark.parametrize("content", [b"", b"not numpy"])
def test_a_side_file_that_is_none(store, content):
    (store / "token_bytes.npy").write_bytes(content)
    refused(store, "token_bytes.npy cannot be read", lambda _: TokenStore.open(store).token_bytes())


def test_a_side_file_of_another_vocabulary(store):
    np.save(store / "token_bytes.npy", np.zeros(7, np.int32))
    refused(store, "has shape [7]; its manifest says [400]", lambda _: TokenStore.open(store).token_bytes())


def test_pickled_arrays_are_never_read(store):
    np.save(store / "token_bytes.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused(store, "token_bytes.npy cannot be read", lambda _: TokenStore.open(store).token_bytes())


@pytest.mark.parametrize("content", [b"", np.array([0, 5])])
def test_offsets_that_do_not_fit(store, content):
    path = store / "val-00000.offsets.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    refused(store, "val-00000.offsets.npy", lambda _: TokenStore.open(store).split("val").document_offsets())


def test_a_broken_tokenizer(store):
    (store / "tokenizer" / "tokenizer.json").write_text("{")
    refused(store, "does not load", lambda _: TokenStore.open(store).tokenizer())


def test_an_unknown_split(store):
    with pytest.raises(ConfigError, match="split is 'test'; accepted: train, val"):
        TokenStore.open(store).split("test")
