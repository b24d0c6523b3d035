"""Safetensors files in blocks. The library's own writer holds the interpreter while it writes and, through
torch.distributed.checkpoint, a second copy in memory; this one lets training go on beside it."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_BYTES = 8 << 20
# The format's names, in the order of the library's own type: the last are laid out first.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ORDER = {dtype: number for number, dtype in enumerate(DTYPES.values())}

Parts = Callable[[str], Iterable[Tensor]]
"""Gives a tensor by its name, on the host, in one or more parts that follow each other in memory order."""


class Spec(NamedTuple):
    """What is known of a tensor before it is there."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Written:
    """A file as it was meant to be."""

    bytes: int
    """Its size."""
    crc32: int
    """Of all its bytes: it tells damage, not forgery."""
    starts: dict[str, int]
    """Where each tensor's first byte lies in the file."""


def write_tensors(
    path: Path, specs: Mapping[str, Spec], parts: Parts, metadata: Mapping[str, str], align: int = 8
) -> Written:
    """Write the file that `safetensors` would write of these tensors, and wait until it is on the disk.

    The first tensor starts at a multiple of `align` bytes.
    """
    header, starts = _header(specs, metadata, align)
    size = crc = 0
    with path.open("wb") as file:
        for block in _blocks_of_file(header, starts, parts):
            file.write(block)
            crc = zlib.crc32(block, crc)
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return Written(size, crc, starts)


def crc32_of(path: Path) -> int:
    """The checksum of a file's bytes."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        block = bytearray(BLOCK_BYTES)
        while count := file.readinto(block):
            crc = zlib.crc32(memoryview(block)[:count], crc)
    return crc


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the host."""
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # pyright: ignore


def _header(
    specs: Mapping[str, Spec], metadata: Mapping[str, str], align: int
) -> tuple[bytes, dict[str, int]]:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    ends, position = {}, 0
    for name in sorted(specs, key=lambda name: (-_ORDER[specs[name].dtype], name.encode())):
        spec = specs[name]
        end = position + spec.bytes
        offsets = [position, end]
        entries[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": offsets}
        ends[name], position = position, end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % align)
    first = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: first + start for name, start in ends.items()}


def _blocks_of_file(header: bytes, names: Iterable[str], parts: Parts) -> Iterator[bytes | memoryview]:
    yield header
    for name in names:
        for part in parts(name):
            whole = bytes_of(part)
            for start in range(0, len(whole), BLOCK_BYTES):
                yield whole[start : start + BLOCK_BYTES]
