"""Every kind of file gives the same documents, and what a document is in a text file."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from retoken.data.clean import Cleaner, is_prose
from retoken.data.sources import file_corpus, find_files


def read(path: Path, **options) -> list[str]:
    return list(file_corpus(path, **{"field": "text", **options}).open())


def pack(path: Path, packing: str) -> Path:
    if not packing:
        return path
    content = path.read_bytes()
    packed = path.with_name(path.name + packing)
    packed.write_bytes(
        gzip.compress(content) if packing == ".gz" else zstandard.ZstdCompressor().compress(content)
    )
    path.unlink()
    return packed


def write(folder: Path, kind: str, documents: list[str], field: str = "text") -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"corpus{kind}"
    if kind == ".jsonl":
        path.write_text("".join(json.dumps({field: text, "id": 1}) + "\n\n" for text in documents))
    elif kind == ".parquet":
        table = pa.table({"id": list(range(len(documents))), field: documents})
        pq.write_table(table, path, row_group_size=50)
    else:
        path.write_text(documents[0])
    return path


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".parquet", ".txt"])
def test_every_kind_gives_the_same_documents(documents, tmp_path, kind, packing):
    path = pack(write(tmp_path / "in", kind, documents), packing)
    wanted = documents[:1] if kind == ".txt" else documents
    assert read(path) == wanted
    assert read(path.parent) == wanted


@pytest.mark.parametrize("kind", [".jsonl", ".parquet"])
def test_the_field_is_an_option(documents, tmp_path, kind):
    assert read(write(tmp_path / "in", kind, documents, field="body"), field="body") == documents


def test_compressed_files_of_several_members_are_read_to_the_end(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    frame = zstandard.ZstdCompressor().compress
    (tmp_path / "b.txt.zst").write_bytes(frame(b"three ") + frame(b"four"))
    assert read(tmp_path) == ["one two", "three four"]


def test_a_folder_is_read_in_the_order_of_its_names_below_it_too(tmp_path):
    for name in ("b/2.txt", "a.txt", "b/1.txt", "c.jsonl", ".hidden/x.txt", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = {"text": name} if name.endswith("jsonl") else name
        (tmp_path / name).write_text(json.dumps(content) if name.endswith("jsonl") else name)
    assert read(tmp_path) == ["a.txt", "b/1.txt", "b/2.txt", "c.jsonl"]
    sources = file_corpus(tmp_path, field="text").sources
    assert [source["name"] for source in sources] == ["a.txt", "b/1.txt", "b/2.txt", "c.jsonl"]


def test_few_text_files_are_cut_into_sections_at_blank_lines(documents, tmp_path):
    book = "\n\n".join(documents)
    (tmp_path / "book.txt").write_text(book)
    sections = read(tmp_path / "book.txt")
    assert "".join(sections) == book, "nothing is lost between sections"
    assert len(sections) > 20
    assert all(section.endswith("\n\n") and len(section) >= 4096 for section in sections[:-1])
    assert read(tmp_path / "book.txt", documents="file") == [book]


def test_many_text_files_are_a_document_each(documents, tmp_path):
    book = "\n\n".join(documents[:40])
    for index in range(100):
        (tmp_path / f"{index:03d}.txt").write_text(f"{index} {book}")
    assert len(read(tmp_path)) == 100
    assert len(read(tmp_path, documents="section")) > 200


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfHello")
    (tmp_path / "b.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "there"}\r\n')
    assert read(tmp_path) == ["Hello", "there"]


def test_seeking_continues_behind_a_position(jsonl, documents):
    stream = file_corpus(jsonl, field="text").open()
    records = iter(stream)
    assert [next(records) for _ in range(7)] == documents[:7]
    other = file_corpus(jsonl, field="text").open()
    other.seek(stream.position())
    assert list(other) == documents[7:]
    assert other.position() == {"documents": len(documents)}


def test_find_files_leaves_other_files_alone(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "x.json").write_text("{}")
    assert find_files(tmp_path) == [tmp_path / "x.txt"]


PROSE = "It was a bright cold day in April, and the clocks were striking thirteen."


@pytest.mark.parametrize(
    ("paragraph", "kept"),
    [
        (PROSE, True),
        ("Only five words are here", False),
        ("Now six words are right here", True),
        ("1 2 3 4 5 6 7 8 9 10 and eleven", False),
        (">>> print the words of this line of code", False),
        ("import os and then nothing but more words", False),
        ("Ärger über größere Übel läßt Bäume wüst blühen", True),
        ("", False),
    ],
)
def test_prose_is_told_from_the_rest(paragraph, kept):
    assert is_prose(paragraph) is kept


def test_cleaning_drops_what_is_no_prose_and_what_was_there():
    cleaner = Cleaner()
    other = "A second paragraph of seven words altogether."
    assert cleaner.clean(f"Title\n\n{PROSE}\n\n| 1 | 2 |\n\n{other}") == f"{PROSE}\n\n{other}"
    assert cleaner.clean(f"{PROSE.upper()}\n\n{other} More of it.") == f"{other} More of it."
    assert cleaner.clean(PROSE) == ""


def test_cleaning_joins_wrapped_lines_or_takes_each_as_a_paragraph():
    wrapped = "It was a bright cold day\nin April, and the clocks\n\twere striking thirteen."
    assert Cleaner().clean(wrapped) == PROSE
    assert Cleaner().clean(f"{PROSE}\n{PROSE}\nshort", lines=True) == PROSE
