"""What callers get wrong: exit code 2, one line that names it, and nothing half-written."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from retoken.cli.main import main
from retoken.cli.prepare import Prepare
from retoken.errors import RetokenError

GOOD = json.dumps({"text": "A good line of text."}) + "\n"


def text(name: str, content: str | bytes):
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def parquet(name: str, **columns):
    def write(folder: Path) -> Path:
        pq.write_table(pa.table(columns), folder / name)
        return folder / name

    return write


def cut(name: str, content: bytes):
    return text(name, content[: len(content) // 2])


def empty_folder(folder: Path) -> Path:
    (folder / "nothing").mkdir()
    return folder / "nothing"


ZIPPED = gzip.compress(os.urandom(5000))
ZSTD = zstandard.ZstdCompressor().compress(os.urandom(5000))
CORPORA = {
    "missing path": (lambda folder: folder / "none.txt", "none.txt does not exist; accepted:"),
    "empty file": (text("a.txt", ""), "a.txt is empty"),
    "only blanks": (text("a.txt", " \n\n \n"), "too small: 'train' gets 0 of 0 documents"),
    "empty folder": (empty_folder, "nothing holds no corpus file"),
    "unknown extension": (text("a.docx", "hello"), "unknown extension '.docx'; accepted: .txt, .jsonl"),
    "compressed unknown extension": (text("a.csv.gz", "hello"), "unknown extension"),
    "broken record": (text("a.jsonl", GOOD * 2 + '{"text": \n' + GOOD), "a.jsonl:3: not a JSON record"),
    "record that is no object": (text("a.jsonl", GOOD + '"text"\n'), "a.jsonl:2: the record is a str"),
    "record without the field": (
        text("a.jsonl", GOOD + '{"body": ""}\n'),
        "a.jsonl:2: no field 'text'; fields: body",
    ),
    "field that is no text": (
        text("a.jsonl", GOOD + '{"text": 5}\n'),
        "a.jsonl:2: field 'text' is int, not text",
    ),
    "field that is null": (text("a.jsonl", '{"text": null}\n'), "a.jsonl:1: field 'text' is NoneType"),
    "half a surrogate pair": (
        text("a.jsonl", '{"text": "\\ud83d"}\n'),
        "a.jsonl:1: field 'text' has half of a",
    ),
    "not UTF-8": (text("a.txt", b"one\ntwo \xff\n"), "a.txt:2: byte 0xff is not UTF-8"),
    "jsonl not UTF-8": (
        text("a.jsonl", GOOD.encode() + b'{"text": "\xe9"}\n'),
        "a.jsonl:2: byte 0xe9 is not UTF-8",
    ),
    "corrupt gz": (text("a.txt.gz", b"not gzip at all"), "a.txt.gz cannot be read"),
    "truncated gz": (cut("a.txt.gz", ZIPPED), "a.txt.gz cannot be read: Truncated compressed stream"),
    "corrupt zst": (text("a.jsonl.zst", b"not zstd at all"), "a.jsonl.zst cannot be read"),
    "truncated zst": (cut("a.jsonl.zst", ZSTD), "a.jsonl.zst cannot be read: Truncated compressed stream"),
    "corrupt parquet": (text("a.parquet", b"not parquet at all"), "a.parquet cannot be read"),
    "parquet without the field": (
        parquet("a.parquet", body=["x"]),
        "a.parquet: no column 'text'; columns: body",
    ),
    "parquet of numbers": (parquet("a.parquet", text=[1, 2]), "a.parquet: row 1: field 'text' is int"),
    "too small for both splits": (text("a.jsonl", GOOD * 3), "too small: '"),
    "no such dataset": (lambda folder: f"hf:{folder}/none", "is neither a local folder nor reachable"),
}


@pytest.mark.parametrize("case", CORPORA)
def test_a_bad_corpus_is_told_in_one_line_and_leaves_nothing(tmp_path, capsys, monkeypatch, case):
    write, told = CORPORA[case]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", _unreachable)
    folder = tmp_path / "in"
    folder.mkdir()
    corpus = write(folder)
    code = main(["prepare", "--corpus", str(corpus), "--out", str(tmp_path / "out"), "--vocab-size", "300"])
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if "entries, of 300 asked for" not in line]
    assert code == 2
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "out").exists()


def _unreachable(*args, **kwargs):
    raise ConnectionError("offline")


def no_eos(folder: Path) -> str:
    backend = Tokenizer(models.WordLevel(vocab={"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]").save_pretrained(folder / "t")
    return str(folder / "t")


def broken_tokenizer(folder: Path) -> str:
    (folder / "t").mkdir()
    (folder / "t" / "tokenizer.json").write_text("{")
    return str(folder / "t")


OPTIONS = {
    "tokenizer that is not there": (lambda f: ["--tokenizer", str(f / "none")], "none' cannot be loaded"),
    "tokenizer that is broken": (lambda f: ["--tokenizer", broken_tokenizer(f)], "cannot be loaded"),
    "tokenizer without eos": (lambda f: ["--tokenizer", no_eos(f)], "has no eos_token"),
    "vocabulary below the bytes": (lambda f: ["--vocab-size", "256"], "--vocab-size is 256; accepted: 257"),
    "no held-out": (
        lambda f: ["--val-fraction", "0"],
        "--val-fraction is 0.0; accepted: above 0 and below 1",
    ),
    "nothing to train on": (lambda f: ["--val-fraction", "1"], "--val-fraction is 1.0; accepted:"),
    "negative limit": (lambda f: ["--max-bytes", "-1"], "--max-bytes is -1; accepted: 0 or more"),
    "empty shards": (lambda f: ["--shard-bytes", "0"], "--shard-bytes is 0; accepted: 1 or more"),
    "negative workers": (lambda f: ["--workers", "-2"], "--workers is -2; accepted: 0 or more"),
    "no dataset": (lambda f: ["--corpus", "hf:"], "--corpus is 'hf:'; accepted: default, builtin"),
    "wrong word": (lambda f: ["--documents", "page"], "page"),
    "unknown option": (lambda f: ["--vocabulary", "5"], "vocabulary"),
    "out is a file": (lambda f: ["--out", str(f / "corpus.jsonl")], "corpus.jsonl is a file; accepted:"),
    "out is below a file": (
        lambda f: ["--out", str(f / "corpus.jsonl" / "x")],
        "cannot write preparation.json",
    ),
    "unknown field": (lambda f: ["--field", "body"], "corpus.jsonl:1: no field 'body'; fields: text"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_a_bad_option_is_told_in_one_line_and_leaves_nothing(jsonl, tmp_path, capsys, case):
    make, told = OPTIONS[case]
    before = jsonl.read_bytes()
    code = main(["prepare", "--corpus", str(jsonl), "--out", str(tmp_path / "out"), *make(tmp_path)])
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert len(lines) == 1
    assert told in lines[0]
    assert not (tmp_path / "out").exists()
    assert jsonl.read_bytes() == before


def test_the_command_prints_what_is_there(jsonl, tmp_path, capsys):
    options = {"corpus": str(jsonl), "vocab_size": 400, "val_fraction": 0.2}
    assert Prepare(out=tmp_path / "out", json=True, **options).run() == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["vocab_size"] == 400
    assert set(printed["splits"]) == {"train", "val"}
    assert Prepare(out=tmp_path / "out", **options).run() == 0
    assert "vocabulary 400, uint16" in capsys.readouterr().out


def test_a_resumable_failure_is_the_callers_to_mend_too(jsonl, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("retoken.data.files.os.fsync", refuse)
    with pytest.raises(RetokenError, match=r"cannot write preparation\.json into .*: Permission denied"):
        Prepare(out=tmp_path / "out", corpus=str(jsonl)).run()
