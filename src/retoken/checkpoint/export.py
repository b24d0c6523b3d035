"""From a training checkpoint of any number of processes to the files that `save_pretrained` would write.

Tensors go from file to file in blocks. Only those that transformers keeps in another shape on disk than in a
model (the fused experts of a mixture) are read whole, a few at a time.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from retoken.checkpoint.build import build_model, described
from retoken.checkpoint.decay import settled_rows
from retoken.checkpoint.files import atomic_folder, writing
from retoken.checkpoint.folders import Checkpoint
from retoken.checkpoint.index import TensorFiles
from retoken.checkpoint.restore import check_names
from retoken.checkpoint.state import model_tensors, pinned
from retoken.checkpoint.tensorfile import Spec, write_tensors

PATTERN = "model{suffix}.safetensors"
OnProgress = Callable[[int, int], None]
"""Told (bytes written, bytes in all) after each block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What an export came to."""

    checkpoint: str
    step: int
    world_size: int
    """Processes that wrote the checkpoint."""
    out: str
    tensors: int
    bytes: int
    """Of the tensors."""
    files: list[str]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class _Source(NamedTuple):
    """Where a tensor of the result comes from."""

    parameter: str
    spec: Spec
    straight: bool
    """Whether it is the parameter as it is."""


def export(
    found: Checkpoint,
    out: Path,
    *,
    max_shard_size: int | str = "50GB",
    beside: Callable[[Path], Any] = lambda folder: None,
    on_progress: OnProgress = lambda done, total: None,
) -> Exported:
    """Write a model folder from a training checkpoint; atomically, in place of one that is there.

    Args:
        found: The checkpoint.
        out: The folder to make.
        max_shard_size: As `save_pretrained`'s: a larger model is divided into files, with an index.
        beside: Puts more into the folder before it takes its name (the tokenizer).
        on_progress: Told of each block.

    Raises:
        CheckpointError: The checkpoint is broken.
        TrainingError: The disk is full or refuses.
    """
    with writing(out), atomic_folder(out) as folder:
        exported = _Writer(found, on_progress).write(folder, out, max_shard_size)
        beside(folder)
    return exported


class _Writer:
    """Writes one checkpoint's model into one folder."""

    def __init__(self, found: Checkpoint, on_progress: OnProgress) -> None:
        self.found, self.files = found, found.tensors()
        self.model = _skeleton(found.path, self.files)
        self.empty = _empty_state(self.model)
        self.sources = self._plan()
        self.total = sum(source.spec.bytes for source in self.sources.values())
        self.done, self.on_progress = 0, on_progress
        self.converted = functools.lru_cache(maxsize=4)(self._convert)

    def write(self, folder: Path, out: Path, max_shard_size: int | str) -> Exported:
        """All files."""
        for name, text in described(self.model).items():
            (folder / name).write_text(text, encoding="utf-8")
        split = self._split(max_shard_size)
        for file, names in split.filename_to_tensors.items():
            specs = {name: self.sources[name].spec for name in names}
            write_tensors(folder / file, specs, self._parts, {"format": "pt"})
        if split.is_sharded:
            metadata = {"total_parameters": self.model.num_parameters(), **split.metadata}
            index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
            text = json.dumps(index, indent=2, sort_keys=True) + "\n"
            (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")
        return Exported(
            checkpoint=str(self.found.path),
            step=self.found.step,
            world_size=self.found.world_size,
            out=str(out),
            tensors=len(self.sources),
            bytes=self.total,
            files=sorted(split.filename_to_tensors),
        )

    def _plan(self) -> dict[str, _Source]:
        """{name on disk: its source}, by what transformers makes of each parameter."""
        sources: dict[str, _Source] = {}
        for name, tensor in self.empty.items():
            for on_disk, value in revert_weight_conversion(self.model, {name: tensor}).items():
                sources[on_disk] = _Source(name, Spec(value.dtype, tuple(value.shape)), value is tensor)
        return sources

    def _split(self, max_shard_size: int | str) -> StateDictSplit:
        """Which tensor goes into which file, as `save_pretrained` decides it: views of one stay together."""
        laid_out = revert_weight_conversion(self.model, dict(self.empty))
        assert set(laid_out) == set(self.sources), (
            "transformers makes one tensor on disk of several parameters"
        )
        return split_state_dict_into_shards_factory(
            laid_out,
            filename_pattern=PATTERN,
            max_shard_size=max_shard_size,
            get_storage_size=lambda tensor: tensor.untyped_storage().nbytes(),
            get_storage_id=lambda tensor: tensor.untyped_storage()._cdata,
        )

    def _parts(self, name: str) -> Iterable[Tensor]:
        source = self.sources[name]
        if source.straight:
            parts: Iterable[Tensor] = settled_rows(self.files, pinned(source.parameter))
        else:
            parts = [self.converted(source.parameter)[name].contiguous()]
        for part in parts:
            yield part
            self.done += part.nbytes
            self.on_progress(self.done, self.total)

    def _convert(self, parameter: str) -> dict[str, Tensor]:
        return revert_weight_conversion(self.model, {parameter: self.files.read(pinned(parameter))})


def _skeleton(path: Path, files: TensorFiles) -> PreTrainedModel:
    """The model without memory, each tensor of the type it has in the files."""
    model = build_model(path, device="meta")
    check_names(path, files.index, {key: tuple(tensor.shape) for key, _, tensor in model_tensors(model)})
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if pinned(name) in files.index:
            tensor.data = torch.empty_like(tensor, dtype=files.index[pinned(name)].spec.dtype)
    return model


def _empty_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """What `save_pretrained` saves: tied tensors once, the ones to be ignored not."""
    names = {owner for _, owner, _ in model_tensors(model)} - set(model._keys_to_ignore_on_save or ())
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}
