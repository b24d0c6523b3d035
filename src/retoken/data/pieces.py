"""Pieces: the unit of work that survives an interruption. A piece is a run of documents; it becomes at most
one shard of each split and, written last, a record that says that it is complete."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from retoken.data.encode import Batch, Encoded
from retoken.data.files import read_json, sha256_file, write_atomic, write_json
from retoken.data.manifest import SPLITS, ShardInfo, SplitInfo
from retoken.data.stream import TextStream
from retoken.errors import DataError

RECORDS = "pieces"
BATCH_BYTES = 1 << 19


def plan(
    texts: Iterable[tuple[str, int]], stream: TextStream, *, shard_bytes: int, max_bytes: int, seen: int
) -> Iterator[Batch]:
    """Groups documents into batches, and batches into pieces of at least `shard_bytes` of text.

    Piece borders depend on the documents alone, never on who encodes them or on where an earlier run stopped.

    Args:
        texts: (document, its UTF-8 bytes), from `stream` or cleaned from it.
        stream: asked for its position at the end of each piece.
        shard_bytes: text of a piece.
        max_bytes: stop once this much text was seen; 0 for all of it.
        seen: bytes seen by earlier runs.
    """
    batch: list[str] = []
    in_batch = in_piece = 0
    full = False
    for text, size in texts:
        batch.append(text)
        in_batch, in_piece, seen = in_batch + size, in_piece + size, seen + size
        full = bool(max_bytes) and seen >= max_bytes
        if full or in_piece >= shard_bytes:
            yield Batch(texts=batch, piece_end={"stream": stream.position(), "seen": seen, "last": full})
            batch, in_batch, in_piece = [], 0, 0
        elif in_batch >= BATCH_BYTES:
            yield Batch(texts=batch)
            batch, in_batch = [], 0
        if full:
            return
    yield Batch(texts=batch, piece_end={"stream": stream.position(), "seen": seen, "last": True})


def completed(folder: Path) -> list[dict[str, Any]]:
    """Records of the pieces that are wholly there, from the first on; what lies behind a gap is redone."""
    records = []
    while (path := folder / RECORDS / f"{len(records):05d}.json").is_file():
        try:
            record = read_json(path)
        except DataError:
            break
        shards = [split["shard"] for split in record["splits"].values() if split["shard"]]
        if not all(_whole(folder, shard) for shard in shards):
            break
        records.append(record)
    return records


def _whole(folder: Path, shard: dict[str, Any]) -> bool:
    for name, digest in (("file", "sha256"), ("offsets_file", "offsets_sha256")):
        path = folder / shard[name]
        if not path.is_file() or sha256_file(path) != shard[digest]:
            return False
    return True


def write_pieces(
    folder: Path, encoded: Iterable[tuple[Batch, dict[str, Encoded]]], *, first: int
) -> Iterator[dict[str, Any]]:
    """Writes pieces as their batches arrive and yields the record of each.

    Raises:
        DiskError: the folder cannot be written; earlier pieces are kept.
    """
    parts: dict[str, list[Encoded]] = {name: [] for name in SPLITS}
    index = first
    for batch, splits in encoded:
        for name in SPLITS:
            parts[name].append(splits[name])
        if batch.piece_end is not None:
            shards = {name: _write_shard(folder, f"{name}-{index:05d}", parts[name]) for name in SPLITS}
            record = {**batch.piece_end, "splits": shards}
            write_json(folder / RECORDS / f"{index:05d}.json", record)
            yield record
            parts = {name: [] for name in SPLITS}
            index += 1


def _write_shard(folder: Path, stem: str, parts: list[Encoded]) -> dict[str, Any]:
    ids = np.concatenate([part.ids for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    text_bytes = sum(part.bytes for part in parts)
    if not len(ids):
        return {"shard": None, "bytes": text_bytes}
    shard, offsets = folder / f"{stem}.bin", folder / f"{stem}.offsets.npy"
    little = ids.astype(ids.dtype.newbyteorder("<"), copy=False)
    write_atomic(shard, lambda file: file.write(little.data))
    starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    write_atomic(offsets, lambda file: np.save(file, starts.astype("<i8")))
    info = ShardInfo(
        file=shard.name,
        tokens=len(ids),
        documents=len(lengths),
        sha256=sha256_file(shard),
        offsets_file=offsets.name,
        offsets_sha256=sha256_file(offsets),
    )
    return {"shard": asdict(info), "bytes": text_bytes}


def summarise(records: list[dict[str, Any]]) -> dict[str, SplitInfo]:
    """Totals and shards of both splits."""
    return {name: _summarise_split([record["splits"][name] for record in records]) for name in SPLITS}


def _summarise_split(pieces: list[dict[str, Any]]) -> SplitInfo:
    shards = tuple(ShardInfo(**piece["shard"]) for piece in pieces if piece["shard"])
    return SplitInfo(
        tokens=sum(shard.tokens for shard in shards),
        documents=sum(shard.documents for shard in shards),
        bytes=sum(piece["bytes"] for piece in pieces),
        shards=shards,
    )
