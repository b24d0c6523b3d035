"""The packed file: every token's record, served in place."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from retoken.checkpoint.files import atomic_file, writing
from retoken.checkpoint.tensorfile import Spec, write_tensors
from retoken.errors import CheckpointError, ConfigError
from retoken.ops import fused
from retoken.serving.layout import CHECK_SEED, RecordLayout
from retoken.serving.pruned import NUMBERS, PRUNED_VERSION, PrunedReader, numbered, padded
from retoken.serving.reader import FolderReader, RowReader, layout_of

FORMAT = "retoken.rows"
FORMAT_VERSION = 1
BLOCK_BYTES = 8 << 20
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
    return torch.linspace(0, vocab_size - 1, count, dtype=torch.float64, device="cpu").long().unique()


def fingerprint(layout: RecordLayout, gather: Gather, number_V: Tensor | None = None) -> str:
    """Hex digest of the layout and of records spread over the vocabulary: which model's rows these are.

    Of pruned rows, also of each token's number.
    """
    digest = hashlib.sha256(json.dumps(layout.to_dict(), sort_keys=True).encode())
    digest.update(gather(sampled(layout.vocab_size)).contiguous().numpy().tobytes())
    if number_V is not None:
        digest.update(number_V.contiguous().numpy().tobytes())
    return digest.hexdigest()


def pack(
    source: RowReader | str | Path, path: str | Path, rows: str | None = None, kept: Tensor | None = None
) -> int:
    """Write a packed file, block by block, atomically.

    Args:
        source: a model folder, or what reads rows.
        path: the file to write.
        rows: float32, bfloat16, int8 or float8_e4m3; None: the type that keeps rows as they are.
        kept: [V] bool: tokens whose rows are stored; the others share one record of zero rows, which modulate
            nothing. None: all, in a file of version 1.

    Returns:
        Its size in bytes.

    Raises:
        CheckpointError: the folder holds no tables.
        ConfigError: no such row type, or the disk has not that much room.
        TrainingError: the disk refuses, or filled up meanwhile.
    """
    reader = FolderReader(Path(source)) if isinstance(source, str | Path) else source
    reader = reader if kept is None else PrunedReader(reader, kept)
    layout, path = layout_of(reader, rows), Path(path)
    number_V = None if kept is None else numbered(kept, layout.vocab_size)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION if kept is None else PRUNED_VERSION),
        "layout": json.dumps(layout.to_dict(), sort_keys=True),
        "fingerprint": fingerprint(layout, lambda ids: layout.encode(reader.some(ids)), number_V),
    }
    records = layout.vocab_size if number_V is None else int(number_V.max()) + 1
    _check_room(path, records * layout.record_bytes)
    spec = {FORMAT: Spec(torch.uint8, (records, layout.record_bytes))}
    parts = {FORMAT: _stored(reader, layout, kept)}
    if number_V is not None:
        whole = padded(number_V, mmap.PAGESIZE)
        spec[NUMBERS], parts[NUMBERS] = Spec(whole.dtype, tuple(whole.shape)), iter([whole])
    with writing(path), atomic_file(path) as partial:
        return write_tensors(partial, spec, lambda name: parts[name], metadata, mmap.PAGESIZE).bytes


def _check_room(path: Path, needed: int) -> None:
    folder = next((folder for folder in path.absolute().parents if folder.is_dir()), None)
    free = needed if folder is None else shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(f"{path} needs {needed} bytes; free there: {free} bytes")


def _stored(reader: RowReader, layout: RecordLayout, kept: Tensor | None) -> Iterator[Tensor]:
    """The records of a file, in its order: of all tokens, or a zero one and those that are kept."""
    if kept is not None:
        shape = (1, layout.rows_per_layer, layout.width)
        yield layout.encode({layer: torch.zeros(shape) for layer in layout.layers})
    for start, records in blocks(reader, layout):
        yield records if kept is None else records[kept[start : start + len(records)]]


class _Described(NamedTuple):
    """What a packed file says of itself."""

    layout: RecordLayout
    fingerprint: str
    start: int
    """Of its first record."""
    records: int
    numbers_at: int | None
    """Where its tokens' numbers start; None: a record is numbered by its token."""


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


def _described(path: Path) -> _Described:
    """What a packed file says of itself; refuses what is none."""
    header, start, size = _header(path)
    meta = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    if meta.get("format") != FORMAT or FORMAT not in header:
        raise CheckpointError(f"{path}: format is {meta.get('format')!r}; accepted: {FORMAT!r}")
    found, versions = meta.get("format_version"), (str(FORMAT_VERSION), str(PRUNED_VERSION))
    if found not in versions:
        raise CheckpointError(f"{path}: format_version is {found}; accepted: {', '.join(versions)}")
    try:
        layout, digest = RecordLayout.from_dict(json.loads(meta["layout"])), str(meta["fingerprint"])
        records, wanted, first = layout.vocab_size, layout.bytes, 0
        if found == str(PRUNED_VERSION):
            records, first = int(header[FORMAT]["shape"][0]), 4 * int(header[NUMBERS]["shape"][0])
            wanted = first + records * layout.record_bytes
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its layout is broken ({error})") from None
    if size != start + wanted:
        raise CheckpointError(f"{path}: {size} bytes; expected {start + wanted}: truncated or changed")
    return _Described(layout, digest, start + first, records, start if first else None)


def state_of(file: Path | int) -> tuple[int, ...]:
    """Of a file by its path or descriptor: another one once it has been written to or is another file."""
    found = os.stat(file)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class PackedFile:
    """A packed file, open for reading in place. Processes that serve the same file share its pages."""

    def __init__(self, path: str | Path, resident_bytes: int = RESIDENT_BYTES) -> None:
        """Opens and checks it, in time that does not depend on its size.

        Raises:
            CheckpointError: missing, truncated, foreign, or changed since it was written.
        """
        self.path, self.resident_bytes = Path(path), resident_bytes
        self.layout, self.fingerprint, self._start, count, numbers_at = _described(self.path)
        self._file = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._map = mmap.mmap(self._file, 0, access=mmap.ACCESS_READ)
        self._map.madvise(mmap.MADV_RANDOM)
        flat = np.frombuffer(self._map, dtype=np.uint8, offset=self._start)
        self._records = flat.reshape(count, self.layout.record_bytes)
        self.number_V: Tensor | None = None
        """[V] int64: which record each token has; None: the one of its own number. 0 holds zero rows."""
        if numbers_at is not None:
            self.number_V = self._numbers(numbers_at, count)
        self._state = state_of(self._file)
        self._good = torch.zeros(count, dtype=torch.bool, device="cpu")
        self._here, self._touched = torch.zeros(count, dtype=torch.bool, device="cpu"), 0
        written = None if self.number_V is None else self.number_V.to(torch.int32)
        if fingerprint(self.layout, self.of_tokens, written) != self.fingerprint:
            raise CheckpointError(f"{self.path}: its records do not fit its fingerprint: changed")

    def __deepcopy__(self, memo: Any) -> PackedFile:
        """A copy of a model reads the same file."""
        return self

    def _numbers(self, start: int, count: int) -> Tensor:
        found = np.frombuffer(self._map, dtype="<i4", count=self.layout.vocab_size, offset=start)
        if found.min() < 0 or found.max() >= count:
            raise CheckpointError(
                f"{self.path}: tokens have records {found.min()}..{found.max()}; accepted: 0..{count - 1}"
            )
        return torch.from_numpy(found.astype(np.int64))

    @property
    def count_of_records(self) -> int:
        """Records there are: V, or of pruned rows one more than there are tokens with rows."""
        return len(self._records)

    @property
    def kept(self) -> Tensor | None:
        """[V] bool: tokens whose rows are stored; None: all."""
        return None if self.number_V is None else self.number_V > 0

    def of_tokens(self, ids: Tensor) -> Tensor:
        """Records [R, record_bytes] of token ids [R], as `gather`."""
        return self.gather(ids if self.number_V is None else self.number_V[ids])

    @property
    def address(self) -> int:
        """Of the first record."""
        return self._records.ctypes.data

    def gather(self, ids: Tensor) -> Tensor:
        """Records [R, record_bytes] by their numbers [R] on the host, checked.

        Raises:
            CheckpointError: a record has changed since it was written.
        """
        ids = ids.contiguous()
        self.count(ids)
        self.ask(ids)
        records = torch.from_numpy(np.take(self._records, ids.numpy(), axis=0))
        self.check(ids)
        self.settle()
        return records

    def ask(self, ids: Tensor) -> None:
        """Have the records numbered ids [R], contiguous, read; nobody waits."""
        where = (self.address, ids.data_ptr(), self.layout.record_bytes)
        fused.kernels().ask(*where, mmap.PAGESIZE, 0, len(ids))

    def unchecked(self, ids: Tensor) -> Tensor:
        """Of the records numbered ids [R] those that `check` has not looked at, which it will read whole."""
        return ids[~self._good[ids]]

    def check(self, ids: Tensor) -> None:
        """Look whether the records numbered ids [R] are as they were written.

        Each is looked at when it is read first, and again once the file has been written to.

        Raises:
            CheckpointError: one is not.
        """
        if (state := state_of(self._file)) != self._state:
            self._state = state
            self._good.zero_()
        new = self.unchecked(ids)
        if len(new):
            self._check_all(new)
            if self._state == state:  # another thread may have found the file written to meanwhile
                self._good[new] = True

    def _check_all(self, ids: Tensor) -> None:
        room = fused.Room(ids.shape, 0, fused.Places.of(ids))
        wrong = fused.passes().first_changed(self.address, self.layout.record_bytes, CHECK_SEED, room.address)
        if wrong >= 0:
            whose = self._whose(int(ids[wrong]))
            raise CheckpointError(f"{self.path}: the record of {whose} was changed after it was written")

    def _whose(self, number: int) -> str:
        if self.number_V is None:
            return f"token {number}"
        return f"token {int((self.number_V == number).nonzero()[0])}" if number else "tokens without rows"

    def count(self, ids: Tensor) -> None:
        """The records numbered ids [R] are about to be read: those whose pages this process has not yet."""
        new = ids[~self._here[ids]]
        if len(new):
            self._here[new] = True
            self._touched += len(new) * (self.layout.record_bytes + _FAULT_AROUND)

    def settle(self) -> None:
        """What was counted has been read: beyond the bound, this process's pages go."""
        if self._touched > self.resident_bytes:
            self.release()

    def release(self) -> None:
        """Let this process's pages go; the system keeps them cached while it has room."""
        self._map.madvise(mmap.MADV_DONTNEED)
        self._here.zero_()
        self._touched = 0

    def records(self) -> Tensor:
        """All records, by number, unchecked and read only: reading one reads the file."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch warns that writing would be an error
            return torch.from_numpy(self._records)
