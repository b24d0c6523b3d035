"""Tables of any size in a file and in memory: random rows for the tokens a bench meets, holes for others."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from retoken.errors import ConfigError
from retoken.serving.available import available_bytes
from retoken.serving.layout import RecordLayout
from retoken.serving.packed import FORMAT, FORMAT_VERSION, PackedFile, sampled

CHUNK = 64
ROW_STD = 0.02
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
"""Memory that nothing was written to is not counted against the machine's; Python 3.13 has its number."""


def random_records(layout: RecordLayout, ids: Tensor) -> Tensor:
    """Records [R, record_bytes] of random rows; a token's depend on its id only."""
    shape = (len(layout.layers), layout.rows_per_layer, layout.width)
    generator, drawn = torch.Generator(), torch.empty((len(ids), *shape))
    for rows, token in zip(drawn, ids.tolist(), strict=True):
        torch.randn(shape, generator=generator.manual_seed(token), out=rows)
    return layout.encode(dict(zip(layout.layers, drawn.mul_(ROW_STD).unbind(1), strict=True)))


def _header(layout: RecordLayout) -> bytes:
    looked_at = random_records(layout, sampled(layout.vocab_size))
    description = json.dumps(layout.to_dict(), sort_keys=True)
    digest = hashlib.sha256(description.encode() + looked_at.numpy().tobytes()).hexdigest()
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "layout": description,
        "fingerprint": digest,
    }
    shape = [layout.vocab_size, layout.record_bytes]
    entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, layout.bytes]}
    text = json.dumps({"__metadata__": metadata, FORMAT: entry}).encode()
    text += b" " * (-(len(text) + 8) % mmap.PAGESIZE)
    return len(text).to_bytes(8, "little") + text


def write(path: Path, layout: RecordLayout, tokens: Tensor) -> None:
    """Write the file: its full size, with data for `tokens` only."""
    header = _header(layout)
    wanted = torch.cat([tokens, sampled(layout.vocab_size)]).unique()
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + layout.bytes)
        for ids, records in _chunks(layout, wanted):
            for token, record in zip(ids.tolist(), records, strict=True):
                os.pwrite(file.fileno(), record.numpy().tobytes(), len(header) + token * layout.record_bytes)
        os.fsync(file.fileno())


def _chunks(layout: RecordLayout, tokens: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for ids in tokens.split(CHUNK):
        yield ids, random_records(layout, ids)


def memory(layout: RecordLayout, count: int, tier: str) -> Tensor:
    """Records [V, record_bytes] in memory, which takes only what is written to.

    Args:
        layout: of the records.
        count: how many will be written.
        tier: "device": of this process; "host": also of those that it forks.

    Raises:
        ConfigError: the machine has not that much memory left, or refuses.
    """
    needed, free = count * layout.record_bytes, available_bytes()
    if free is not None and needed > free:
        raise ConfigError(f"{tier} tier needs {needed} bytes for {count} records; available: {free} bytes")
    kind = mmap.MAP_PRIVATE if tier == "device" else mmap.MAP_SHARED
    try:
        found = mmap.mmap(-1, layout.bytes, flags=kind | mmap.MAP_ANONYMOUS | NO_RESERVE)
    except OSError as error:
        raise ConfigError(
            f"{tier} tier needs {layout.bytes} bytes of address space; refused: {error}"
        ) from None
    return torch.frombuffer(found, dtype=torch.uint8).view(layout.vocab_size, layout.record_bytes)


def drop_cache(opened: Sequence[PackedFile]) -> None:
    """Have the system forget what it has cached of a file, so that the next reading reads the disk.

    Args:
        opened: the file, once for each time this process has it open: what is mapped stays cached.
    """
    for packed in opened:
        packed.release()
        forget(packed.path)


def forget(path: Path) -> None:
    """Have the system drop a file's cached pages that no process has mapped."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm_cache(path: Path, tokens: Tensor) -> None:
    """Have some tokens' records cached by the system; who has the file open has not read them by that."""
    apart = PackedFile(path)
    for ids in tokens.split(CHUNK):
        apart.of_tokens(ids)
