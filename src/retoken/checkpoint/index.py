"""Where in the files of a checkpoint each part of each tensor lies: index.json, and reading by it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from retoken.checkpoint.files import read_json, sync
from retoken.checkpoint.tensorfile import BLOCK_BYTES, DTYPES, NAMES, Spec, bytes_of
from retoken.errors import CheckpointError

INDEX_FILE = "index.json"


@dataclass(frozen=True, slots=True)
class Stored:
    """A box of a tensor, contiguous in a file."""

    file: str
    start: int
    """Its first byte in the file."""
    offsets: tuple[int, ...]
    """Its first element in the tensor."""
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a checkpoint."""

    spec: Spec
    boxes: tuple[Stored, ...]


Index = dict[str, Entry]


def write_index(index: Index, path: Path) -> None:
    """Write index.json, without a space: there are as many boxes as tensors times processes."""
    values = {
        name: {
            "dtype": NAMES[entry.spec.dtype],
            "shape": list(entry.spec.shape),
            "boxes": [[box.file, box.start, list(box.offsets), list(box.shape)] for box in entry.boxes],
        }
        for name, entry in sorted(index.items())
    }
    path.write_text(json.dumps(values, separators=(",", ":")), encoding="utf-8")
    sync(path)


def read_index(path: Path) -> Index:
    """What `write_index` wrote.

    Raises:
        CheckpointError: It is missing, or something else.
    """
    values = read_json(path)
    try:
        return {name: _entry(value) for name, value in values.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: not the index of a training checkpoint ({error!r})") from None


def _entry(value: dict[str, Any]) -> Entry:
    boxes = [
        Stored(file, start, tuple(offsets), tuple(shape)) for file, start, offsets, shape in value["boxes"]
    ]
    return Entry(Spec(DTYPES[value["dtype"]], tuple(value["shape"])), tuple(boxes))


class TensorFiles:
    """Reads tensors of one checkpoint, a block at a time."""

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder, self.index = folder, index

    def read(self, name: str) -> Tensor:
        """A whole tensor, in memory of its own."""
        entry = self.index[name]
        out = torch.empty(entry.spec.shape, dtype=entry.spec.dtype)
        for box in entry.boxes:
            place = tuple(slice(o, o + n) for o, n in zip(box.offsets, box.shape, strict=True))
            self.read_box(box, entry.spec.dtype, (0,) * len(box.shape), out[place])
        return out

    def read_all(self) -> dict[str, Tensor]:
        """Every tensor by its name, in the memory of this process."""
        return {name: self.read(name) for name in self.index}

    def rows(self, name: str) -> Iterator[Tensor]:
        """A tensor in order, some rows [r, ...] at a time: a block's worth, or one row where that is more."""
        spec = self.index[name].spec
        if not spec.shape:
            yield self.read(name)
            return
        count = max(1, BLOCK_BYTES // max(1, math.prod(spec.shape[1:]) * spec.dtype.itemsize))
        for first in range(0, spec.shape[0], count):
            yield self._rows(self.index[name], first, min(count, spec.shape[0] - first))

    def _rows(self, entry: Entry, first: int, count: int) -> Tensor:
        out = torch.empty((count, *entry.spec.shape[1:]), dtype=entry.spec.dtype)
        for box in entry.boxes:
            low, high = max(first, box.offsets[0]), min(first + count, box.offsets[0] + box.shape[0])
            if low < high:
                rest = tuple(slice(o, o + n) for o, n in zip(box.offsets[1:], box.shape[1:], strict=True))
                skipped = (low - box.offsets[0], *(0,) * (len(box.shape) - 1))
                self.read_box(box, entry.spec.dtype, skipped, out[(slice(low - first, high - first), *rest)])
        return out

    def read_box(self, box: Stored, dtype: torch.dtype, skip: Sequence[int], out: Tensor) -> None:
        """Fill `out` with the part of a box that begins at `skip` in it.

        Raises:
            CheckpointError: The file is gone, or ends too early.
        """
        if out.numel() == 0:
            return
        shape = box.shape or (1,)
        skip, out = (tuple(skip) or (0,)), (out if box.shape else out.view(1))
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        try:
            with (self.folder / box.file).open("rb", buffering=0) as file:
                file.seek(box.start + skip[0] * row_bytes)
                _fill(file, shape, dtype, skip[1:], out)
        except OSError as error:
            raise CheckpointError(f"{self.folder / box.file} cannot be read ({error.strerror})") from error


def _fill(
    file: BinaryIO | Any, shape: Sequence[int], dtype: torch.dtype, skip: Sequence[int], out: Tensor
) -> None:
    """Rows of `shape` from where the file stands, cut to what `out` wants of each."""
    straight = tuple(out.shape[1:]) == tuple(shape[1:]) and out.dtype == dtype
    straight = straight and out.is_contiguous() and out.device.type == "cpu"
    count = max(1, BLOCK_BYTES // max(1, math.prod(shape[1:]) * dtype.itemsize))
    cut = tuple(slice(o, o + n) for o, n in zip(skip, out.shape[1:], strict=True))
    for first in range(0, out.shape[0], count):
        rows = out[first : first + count]
        block = rows if straight else torch.empty((rows.shape[0], *shape[1:]), dtype=dtype)
        _read_into(file, bytes_of(block))
        if not straight:
            rows.copy_(block[(slice(None), *cut)])


def _read_into(file: Any, memory: memoryview) -> None:
    done = 0
    while done < len(memory):
        count = file.readinto(memory[done:])
        if not count:
            raise CheckpointError(f"{file.name} ends before its tensors do")
        done += count
