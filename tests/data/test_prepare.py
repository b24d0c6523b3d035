"""Documents in, the same documents out: boundaries, splits, counts, and bytes that depend on nothing else."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
from transformers import AutoTokenizer

from retoken.data.encode import is_held_out
from retoken.data.tokens import TokenStore
from retoken.errors import DataError


def decoded(store: TokenStore, split: str) -> list[str]:
    """The documents of a split, each without its end-of-text token."""
    tokens, tokenizer = store.split(split), store.tokenizer()
    offsets = tokens.document_offsets()
    texts = []
    for start, end in pairwise(offsets):
        ids = tokens.read(start, end - start)
        assert ids[-1] == store.manifest.eos_id
        texts.append(tokenizer.decode(ids[:-1]))
    return texts


def test_every_document_comes_back_on_its_side_of_the_split(make, documents, tmp_path):
    manifest = make(shard_bytes=20_000)
    store = TokenStore.open(tmp_path / "out")
    held = [text for text in documents if is_held_out(text, 0.2)]
    kept = [text for text in documents if not is_held_out(text, 0.2)]
    assert decoded(store, "train") == kept
    assert decoded(store, "val") == held
    assert 20 < len(held) < 80
    assert len(manifest.splits["train"].shards) > 5
    store.verify()


def test_counts_and_bytes_are_those_of_the_text(make, documents, tmp_path):
    manifest = make(shard_bytes=20_000)
    store = TokenStore.open(tmp_path / "out")
    for name, split in manifest.splits.items():
        tokens = store.split(name)
        ids = tokens.read(0, len(tokens))
        texts = [text for text in documents if is_held_out(text, 0.2) == (name == "val")]
        assert split.documents == len(texts) == (ids == store.manifest.eos_id).sum()
        assert split.bytes == sum(len(text.encode()) for text in texts)
        assert split.bytes == store.token_bytes()[ids].sum(), "a byte-level vocabulary counts every byte once"
        assert np.array_equal(
            np.bincount(ids, minlength=manifest.vocab_size), store.token_counts(name).numpy()
        )
    assert manifest.dtype == "uint16"
    assert len(store.tokenizer()) == manifest.vocab_size == 400


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_changes_no_byte(make, contents, tmp_path, workers):
    make("alone", shard_bytes=20_000)
    make("together", shard_bytes=20_000, workers=workers)
    assert contents(tmp_path / "alone") == contents(tmp_path / "together")


def test_a_finished_preparation_is_left_as_it_is(make, contents, tmp_path):
    first = make()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert make() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_the_place_of_corpus_and_output_changes_no_byte(make, contents, jsonl, tmp_path):
    moved = tmp_path / "elsewhere" / jsonl.name
    moved.parent.mkdir()
    moved.write_bytes(jsonl.read_bytes())
    make("here")
    make("there", corpus=str(moved))
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"vocab_size": 300}, "vocab_size 400 there, 300 asked"),
        ({"val_fraction": 0.3}, "val_fraction 0.2 there, 0.3 asked"),
        ({"max_bytes": 90_000}, "max_bytes 0 there, 90000 asked"),
        ({"tokenizer": "out/tokenizer"}, "tokenizer 'bpe' there, 'tokenizer' asked"),
    ],
)
def test_another_preparation_is_refused_naming_both(make, contents, tmp_path, change, told):
    make()
    before = contents(tmp_path / "out")
    if "tokenizer" in change:
        change = {"tokenizer": str(tmp_path / change["tokenizer"])}
    with pytest.raises(DataError, match="holds another preparation") as caught:
        make(**change)
    assert told in str(caught.value)
    assert contents(tmp_path / "out") == before


def test_a_changed_corpus_is_another_preparation(make, jsonl):
    make()
    with jsonl.open("a") as file:
        file.write(json.dumps({"text": "One more document."}) + "\n")
    with pytest.raises(
        DataError, match=r"sources corpus.jsonl \(\w{12}\) there, corpus.jsonl \(\w{12}\) asked"
    ):
        make()


def test_a_folder_of_somebody_else_is_refused(make, contents, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("keep me")
    with pytest.raises(DataError, match="is not empty and holds no preparation"):
        make()
    assert contents(tmp_path / "out") == {"thesis.tex": b"keep me"}


def test_special_tokens_written_out_in_a_text_stay_text(make, documents, tmp_path):
    tricky = [f"{text} <|endoftext|> and on it goes" for text in documents]
    path = tmp_path / "tricky.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in tricky))
    manifest = make(corpus=str(path))
    store = TokenStore.open(tmp_path / "out")
    assert sum(split.documents for split in manifest.splits.values()) == len(documents)
    counts = sum(store.token_counts(name)[manifest.eos_id].item() for name in manifest.splits)
    assert counts == len(documents), "only the ends of documents are end-of-text tokens"
    assert sorted(decoded(store, "train") + decoded(store, "val")) == sorted(tricky)


def test_a_tokenizer_by_path_gives_its_own_ids(make, documents, tmp_path):
    make("bpe")
    path = tmp_path / "bpe" / "tokenizer"
    manifest = make("named", tokenizer=str(path))
    store = TokenStore.open(tmp_path / "named")
    expected = AutoTokenizer.from_pretrained(path)
    ids = store.split("train").read(0, 50)
    first = next(text for text in documents if not is_held_out(text, 0.2))
    assert ids.tolist() == [*expected(first)["input_ids"], manifest.eos_id][:50]
    assert decoded(store, "train") == decoded(TokenStore.open(tmp_path / "bpe"), "train")


def test_large_vocabularies_take_four_bytes(make, tmp_path):
    make("bpe")
    shutil.copytree(tmp_path / "bpe" / "tokenizer", tmp_path / "wide")
    path = tmp_path / "wide" / "tokenizer.json"
    value = json.loads(path.read_text())
    value["model"]["vocab"] |= {f"zz{index}": index for index in range(400, 70_400)}
    path.write_text(json.dumps(value))
    manifest = make("out", tokenizer=str(tmp_path / "wide"))
    assert manifest.dtype == "uint32"
    assert manifest.vocab_size == 70_400
    store = TokenStore.open(tmp_path / "out")
    assert len(store.token_bytes()) == 70_400
    assert decoded(store, "val") == decoded(TokenStore.open(tmp_path / "bpe"), "val")


def test_max_bytes_stops_behind_the_document_that_reaches_it(make, documents):
    sizes = np.cumsum([len(text.encode()) for text in documents])
    manifest = make(max_bytes=50_000)
    taken = int(np.searchsorted(sizes, 50_000)) + 1
    assert sum(split.documents for split in manifest.splits.values()) == taken
    assert sum(split.bytes for split in manifest.splits.values()) == sizes[taken - 1]
