"""torch.distributed.checkpoint's storage and planning, for chunks in safetensors files.

DCP drives saving and loading: it gathers every process's plan, checks that the chunks cover each tensor once,
drops duplicates and tells all processes of the failure of any. The files are the ones of its Hugging Face
storage, so DCP's own reader of those reads them too.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from retoken.checkpoint.chunks import Chunk
from retoken.checkpoint.index import Entry, Index, Stored, TensorFiles
from retoken.checkpoint.tensorfile import Spec, write_tensors

# What DCP's Hugging Face storage writes into a header, so that it finds each file's boxes.
_BOXES, _VERSION = "DCP_SHARDING_INFO", {"DCP_VERSION": "1.0", "format": "pt"}

OnWritten = Callable[[Index, dict[str, dict[str, int]]], None]
"""Told, in the first process, what all processes wrote: the index, and {file: its "bytes" and "crc32"}."""


class ChunkSavePlanner(DefaultSavePlanner):
    """Plans the chunks of this process; empty ones are left out."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def create_local_plan(self) -> SavePlan:
        """One item a chunk."""
        chunks: Mapping[str, Chunk] = self.state_dict
        self.plan = SavePlan([_write_item(name, c) for name, c in chunks.items() if c.tensor.numel()])
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        """The tensor of an item."""
        return self.state_dict[index.fqn].tensor


def _write_item(name: str, chunk: Chunk) -> WriteItem:
    offsets, sizes = torch.Size(chunk.offsets), chunk.tensor.shape
    data = TensorWriteData(
        chunk=ChunkStorageMetadata(offsets, sizes),
        properties=TensorProperties(dtype=chunk.tensor.dtype),
        size=torch.Size(chunk.shape),
    )
    return WriteItem(MetadataIndex(name, offsets), WriteItemType.SHARD, tensor_data=data)


class ChunkLoadPlanner(DefaultLoadPlanner):
    """Plans to fill chunks of this process; each process may want others."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Keep what is to be filled."""
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        """An item for every overlap of a wanted chunk with a stored one."""
        assert self.metadata is not None
        items: list[ReadItem] = []
        for name, chunk in self.state_dict.items():
            box = ChunkStorageMetadata(torch.Size(chunk.offsets), chunk.tensor.shape)
            if chunk.tensor.numel():
                stored = self.metadata.state_dict_metadata[name]
                items += create_read_items_for_chunk_list(name, stored, [box])  # pyright: ignore
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        """The tensor that an item fills."""
        return self.state_dict[index.fqn].tensor


class ShardWriter(StorageWriter):
    """Each process writes one file; when all have, the first is told of them."""

    def __init__(self, folder: Path, on_written: OnWritten) -> None:
        self.folder, self.on_written = folder, on_written

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept between saves."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make the folder, before any process hears of a plan."""
        if is_coordinator:
            self.folder.mkdir(parents=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Name every process's file."""
        names = [f"shard-{number:05d}-of-{len(plans):05d}.safetensors" for number in range(1, len(plans) + 1)]
        return [dataclasses.replace(p, storage_data=n) for p, n in zip(plans, names, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this process's file."""
        items = {item.index.fqn: item for item in plan.items}
        assert len(items) == len(plan.items), "two chunks of one tensor in one process"
        found: Future[list[WriteResult]] = Future()
        found.set_result(self._write(plan.storage_data, items, planner) if items else [])
        return found

    def _write(self, file: str, items: dict[str, WriteItem], planner: SavePlanner) -> list[WriteResult]:
        boxes = {name: {"saved_offsets": list(_data(item).chunk.offsets)} for name, item in items.items()}
        written = write_tensors(
            self.folder / file,
            {name: Spec(_data(i).properties.dtype, tuple(_data(i).chunk.sizes)) for name, i in items.items()},
            lambda name: [planner.resolve_data(items[name])],  # pyright: ignore
            {_BOXES: json.dumps(boxes), **_VERSION},
        )
        facts = {"bytes": written.bytes, "crc32": written.crc32}
        return [_result(item, file, written.starts[name], facts) for name, item in items.items()]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Hand on what was written where."""
        boxes: dict[str, list[Stored]] = {}
        files: dict[str, dict[str, int]] = {}
        for result in (one for of_rank in results for one in of_rank):
            stored, facts = result.storage_data
            boxes.setdefault(result.index.fqn, []).append(stored)
            files[stored.file] = facts
        tensors: Any = metadata.state_dict_metadata
        self.on_written({name: _entry(tensors[name], found) for name, found in boxes.items()}, files)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Folders are given to the constructor."""
        return False


def _data(item: WriteItem) -> TensorWriteData:
    assert item.tensor_data is not None
    return item.tensor_data


def _result(item: WriteItem, file: str, start: int, facts: dict[str, int]) -> WriteResult:
    chunk = _data(item).chunk
    stored = Stored(file, start, tuple(chunk.offsets), tuple(chunk.sizes))
    size = math.prod(chunk.sizes) * _data(item).properties.dtype.itemsize
    return WriteResult(index=item.index, size_in_bytes=size, storage_data=(stored, facts))


def _entry(tensor: TensorStorageMetadata, boxes: list[Stored]) -> Entry:
    spec = Spec(tensor.properties.dtype, tuple(tensor.size))
    return Entry(spec, tuple(sorted(boxes, key=lambda box: box.offsets)))


class ShardReader(StorageReader):
    """Reads the parts of the files that a plan names."""

    def __init__(self, files: TensorFiles) -> None:
        self.files = files
        self.boxes = {
            MetadataIndex(name, torch.Size(box.offsets)): (entry.spec.dtype, box)
            for name, entry in files.index.items()
            for box in entry.boxes
        }

    def reset(self, checkpoint_id: Any = None) -> None:
        """Nothing is kept between loads."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index in DCP's words."""
        return Metadata(state_dict_metadata={n: _metadata(e) for n, e in self.files.index.items()})

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """The index is at hand already."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """As it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """As they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read straight into the tensors that are to be filled."""
        for item in plan.items:
            dtype, box = self.boxes[item.storage_index]
            target = planner.resolve_tensor(item).detach()
            self.files.read_box(box, dtype, item.storage_offsets, target)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Folders are given to the constructor."""
        return False


def _metadata(entry: Entry) -> TensorStorageMetadata:
    boxes = [ChunkStorageMetadata(torch.Size(b.offsets), torch.Size(b.shape)) for b in entry.boxes]
    return TensorStorageMetadata(
        TensorProperties(dtype=entry.spec.dtype), torch.Size(entry.spec.shape), boxes
    )
