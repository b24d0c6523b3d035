"""Documents out of local files: txt, jsonl, parquet, plain or compressed, one file or a folder of them."""

import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from retoken.data.files import first_line, sha256_file
from retoken.data.stream import Corpus, CountedStream
from retoken.errors import DataError

KINDS = (".txt", ".jsonl", ".parquet")
PACKED = {".gz": "gzip", ".zst": "zstd"}
ACCEPTED = ".txt, .jsonl or .parquet, each plain or with .gz or .zst"
FEW_TEXT_FILES = 100
SECTION_BYTES = 4096


def file_corpus(path: Path, *, field: str, documents: str = "auto") -> Corpus:
    """A file, or a folder of files, read in the order of their names.

    Args:
        path: the file or folder.
        field: which field of a jsonl record or parquet row holds the text.
        documents: what a document is in a text file: "file", "section" (cut at the first blank line behind
            4 KiB), or "auto": files where there are 100 or more of them, sections otherwise, so that one long
            book can still be split into train and held-out.

    Raises:
        DataError: nothing readable at `path`.
    """
    files = find_files(path)
    texts = sum(kind(file)[0] == ".txt" for file in files)
    sections = documents == "section" or (documents == "auto" and texts < FEW_TEXT_FILES)

    def read() -> Iterator[str]:
        for file in files:
            yield from read_documents(file, field=field, sections=sections)

    root = path if path.is_dir() else path.parent
    sources = tuple(describe(file, root) for file in files)
    plain = all(kind(file) == (".txt", None) for file in files)
    total = sum(source["bytes"] for source in sources) if plain else None
    return Corpus(name=path.name, sources=sources, open=lambda: CountedStream(read), total_bytes=total)


def describe(file: Path, root: Path) -> dict[str, Any]:
    """A manifest entry: name below `root`, size, sha256."""
    return {
        "name": file.relative_to(root).as_posix(),
        "bytes": file.stat().st_size,
        "sha256": sha256_file(file),
    }


def kind(file: Path) -> tuple[str, str | None]:
    """(".txt" | ".jsonl" | ".parquet" | other, "gzip" | "zstd" | None) from a file's name."""
    packed = PACKED.get(file.suffix.lower())
    name = file.with_suffix("") if packed else file
    return name.suffix.lower(), packed


def find_files(path: Path) -> list[Path]:
    """The corpus files at `path`, sorted by name.

    Raises:
        DataError: missing, of an unknown kind, empty, or a folder with nothing to read.
    """
    if not path.exists():
        raise DataError(
            f"corpus {path} does not exist; accepted: 'default', 'builtin', a file or folder of {ACCEPTED}, "
            "or hf:NAME for a Hugging Face dataset"
        )
    if path.is_file():
        files = [path]
        if kind(path)[0] not in KINDS:
            raise DataError(f"{path}: unknown extension '{path.suffix}'; accepted: {ACCEPTED}")
    else:
        found = (file for file in path.rglob("*") if file.is_file() and kind(file)[0] in KINDS)
        files = sorted(file for file in found if not _hidden(file.relative_to(path)))
        if not files:
            raise DataError(f"folder {path} holds no corpus file; accepted: {ACCEPTED}")
    for file in files:
        if file.stat().st_size == 0:
            raise DataError(f"{file} is empty")
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_documents(file: Path, *, field: str, sections: bool) -> Iterator[str]:
    """The documents of one file, in order.

    Raises:
        DataError: not UTF-8, broken or truncated compression, a broken record (with its line), no such field.
    """
    suffix, packed = kind(file)
    try:
        with closing(_open(file, packed)) as stream:
            if suffix == ".parquet":
                yield from _parquet(file, stream, field, packed)
            elif suffix == ".jsonl":
                yield from _jsonl(file, stream, field)
            else:
                yield from _txt(file, stream, sections)
    except (OSError, pa.ArrowException, EOFError) as error:
        raise DataError(f"{file} cannot be read: {first_line(error)} (corrupt or truncated?)") from None


def _open(file: Path, packed: str | None) -> BinaryIO:
    if packed is None:
        return file.open("rb")
    return io.BufferedReader(cast(io.RawIOBase, pa.input_stream(str(file), compression=packed)))


def _lines(file: Path, stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """(line number, line with its end) with the byte-order mark dropped."""
    for number, raw in enumerate(stream, start=1):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            wrong = raw[error.start]
            raise DataError(
                f"{file}:{number}: byte 0x{wrong:02x} is not UTF-8; accepted: UTF-8 text"
            ) from None


def _txt(file: Path, stream: BinaryIO, sections: bool) -> Iterator[str]:
    kept: list[str] = []
    size = 0
    for _, line in _lines(file, stream):
        kept.append(line)
        size += len(line)
        if sections and size >= SECTION_BYTES and not line.strip():
            yield "".join(kept)
            kept, size = [], 0
    if kept:
        yield "".join(kept)


def _jsonl(file: Path, stream: BinaryIO, field: str) -> Iterator[str]:
    for number, line in _lines(file, stream):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise DataError(f"{file}:{number}: not a JSON record ({first_line(error)})") from None
        yield text_field(record, field, f"{file}:{number}")


def _parquet(file: Path, stream: BinaryIO, field: str, packed: str | None) -> Iterator[str]:
    table = pq.ParquetFile(io.BytesIO(stream.read()) if packed else stream)
    names = table.schema_arrow.names
    if field not in names:
        raise DataError(f"{file}: no column '{field}'; columns: {', '.join(names)}")
    row = 0
    for batch in table.iter_batches(columns=[field], batch_size=1024):
        for record in batch.to_pylist():
            row += 1
            yield text_field(record, field, f"{file}: row {row}")


def text_field(record: object, field: str, where: str) -> str:
    """The text of one record.

    Raises:
        DataError: the record is no object, lacks the field, or holds something other than text there.
    """
    if not isinstance(record, dict):
        raise DataError(f"{where}: the record is a {type(record).__name__}, not an object with '{field}'")
    if field not in record:
        raise DataError(f"{where}: no field '{field}'; fields: {', '.join(map(str, record))}")
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{where}: field '{field}' is {type(text).__name__}, not text")
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise DataError(f"{where}: field '{field}' has half of a surrogate pair, which is no character")
    return text
