"""The packed file: every token's record, served in place."""

from __future__ import annotations

import hashlib
import json
import mmap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retoken.checkpoint.files import atomic_file, writing
from retoken.checkpoint.tensorfile import Spec, write_tensors
from retoken.errors import CheckpointError
from retoken.ops import fused
from retoken.ops.row_update.threads import divide
from retoken.serving.layout import CHECK_SEED, RecordLayout
from retoken.serving.reader import FolderReader, RowReader, layout_of

FORMAT = "retoken.rows"
FORMAT_VERSION = 1
BLOCK_BYTES = 8 << 20
CHECK_BYTES = 4 << 20
"""Of records that are worth a thread's start when they are checked."""
RESIDENT_BYTES = 256 << 20
SAMPLED = 64
_FAULT_AROUND = 64 << 10
_LARGEST_HEADER = 1 << 20

Gather = Callable[[Tensor], Tensor]
"""Records [R, record_bytes] of token ids [R]."""


def blocks(reader: RowReader, layout: RecordLayout) -> Iterator[tuple[int, Tensor]]:
    """(first token, records) of all tokens, some megabytes at a time."""
    step = max(BLOCK_BYTES // layout.record_bytes, 1)
    for start in range(0, layout.vocab_size, step):
        yield start, layout.encode(reader.block(start, min(start + step, layout.vocab_size)))


def sampled(vocab_size: int) -> Tensor:
    """The tokens whose records a fingerprint looks at: up to 64, spread over the vocabulary."""
    count = min(SAMPLED, vocab_size)
    return torch.linspace(0, vocab_size - 1, count, dtype=torch.float64).long().unique()


def fingerprint(layout: RecordLayout, gather: Gather) -> str:
    """Hex digest of the layout and of records spread over the vocabulary: which model's rows these are."""
    digest = hashlib.sha256(json.dumps(layout.to_dict(), sort_keys=True).encode())
    digest.update(gather(sampled(layout.vocab_size)).contiguous().numpy().tobytes())
    return digest.hexdigest()


def pack(source: RowReader | str | Path, path: str | Path, rows: str | None = None) -> int:
    """Write a packed file, block by block, atomically.

    Args:
        source: a model folder, or what reads rows.
        path: the file to write.
        rows: float32, bfloat16, int8 or float8_e4m3; None: the type that keeps rows as they are.

    Returns:
        Its size in bytes.

    Raises:
        CheckpointError: the folder holds no tables.
        ConfigError: no such row type.
        TrainingError: the disk is full or refuses.
    """
    reader = FolderReader(Path(source)) if isinstance(source, str | Path) else source
    layout, path = layout_of(reader, rows), Path(path)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "layout": json.dumps(layout.to_dict(), sort_keys=True),
        "fingerprint": fingerprint(layout, lambda ids: layout.encode(reader.some(ids))),
    }
    spec = {FORMAT: Spec(torch.uint8, (layout.vocab_size, layout.record_bytes))}
    with writing(path), atomic_file(path) as partial:
        parts = (records for _, records in blocks(reader, layout))
        return write_tensors(partial, spec, lambda name: parts, metadata, mmap.PAGESIZE).bytes


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The safetensors header, where the first tensor starts, and the file's size."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
                raise ValueError(f"header of {length} bytes in a file of {size}")
            return json.loads(file.read(length)), 8 + length, size
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; accepted: a file that retoken.pack wrote") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a packed file ({error}); accepted: what pack wrote") from None


def _described(path: Path) -> tuple[RecordLayout, str, int]:
    """Layout, fingerprint and first record's place of a packed file; refuses what is none."""
    header, start, size = _header(path)
    meta = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    if meta.get("format") != FORMAT or FORMAT not in header:
        raise CheckpointError(f"{path}: format is {meta.get('format')!r}; accepted: {FORMAT!r}")
    if meta.get("format_version") != str(FORMAT_VERSION):
        found = meta.get("format_version")
        raise CheckpointError(f"{path}: format_version is {found}; accepted: {FORMAT_VERSION}")
    try:
        layout, digest = RecordLayout.from_dict(json.loads(meta["layout"])), str(meta["fingerprint"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its layout is broken ({error})") from None
    if size != start + layout.bytes:
        raise CheckpointError(f"{path}: {size} bytes; expected {start + layout.bytes}: truncated or changed")
    return layout, digest, start


class PackedFile:
    """A packed file, open for reading in place. Processes that serve the same file share its pages."""

    def __init__(self, path: str | Path, resident_bytes: int = RESIDENT_BYTES) -> None:
        """Opens and checks it, in time that does not depend on its size.

        Raises:
            CheckpointError: missing, truncated, foreign, or changed since it was written.
        """
        self.path, self.resident_bytes = Path(path), resident_bytes
        self.layout, self.fingerprint, self._start = _described(self.path)
        with self.path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        flat = np.frombuffer(self._map, dtype=np.uint8, offset=self._start)
        self._records = flat.reshape(self.layout.vocab_size, self.layout.record_bytes)
        self._touched = 0
        self._share = (self.layout.record_bytes + _FAULT_AROUND) // len(self.layout.layers)
        if fingerprint(self.layout, self.gather) != self.fingerprint:
            raise CheckpointError(f"{self.path}: its records do not fit its fingerprint: changed")

    def __deepcopy__(self, memo: Any) -> PackedFile:
        """A copy of a model reads the same file."""
        return self

    @property
    def address(self) -> int:
        """Of the first record."""
        return self._records.ctypes.data

    def gather(self, ids: Tensor) -> Tensor:
        """Records [R, record_bytes] of token ids [R] on the host; each is checked.

        Raises:
            CheckpointError: a record has changed since it was written.
        """
        ids = ids.contiguous()
        self.ask(ids)
        records = torch.from_numpy(np.take(self._records, ids.numpy(), axis=0))
        self.check(ids)
        self.count(len(ids), len(self.layout.layers))
        return records

    def ask(self, ids: Tensor) -> None:
        """Have the records of ids [R], contiguous, read; nobody waits."""
        where = (self.address, ids.data_ptr(), self.layout.record_bytes)
        fused.kernels().ask(*where, mmap.PAGESIZE, 0, len(ids))

    def check(self, ids: Tensor) -> None:
        """Look whether the records of ids [R], contiguous, are as they were written.

        Raises:
            CheckpointError: one is not.
        """
        where = (self.address, ids.data_ptr(), self.layout.record_bytes, CHECK_SEED)

        def some(start: int, stop: int) -> None:
            wrong = fused.kernels().first_changed(*where, start, stop)
            if wrong >= 0:
                raise CheckpointError(
                    f"{self.path}: the record of token {int(ids[wrong])} was changed after it was written"
                )

        least = -(-CHECK_BYTES // self.layout.record_bytes)
        if len(ids) < 2 * least:
            some(0, len(ids))
        else:
            divide([(len(ids), least, some)], torch.get_num_threads())

    def count(self, records: int, layers: int) -> None:
        """Some layers' rows of so many records have been read; drop this process's pages beyond the bound."""
        self._touched += records * layers * self._share
        if self._touched > self.resident_bytes:
            self.release()

    def release(self) -> None:
        """Let this process's pages go; the system keeps them cached while it has room."""
        self._map.madvise(mmap.MADV_DONTNEED)
        self._touched = 0

    def records(self) -> Tensor:
        """All records, [V, record_bytes], unchecked and read only: reading one reads the file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns that writing would be an error
            return torch.from_numpy(self._records)
