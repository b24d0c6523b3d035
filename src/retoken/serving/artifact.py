"""The exported artefact: a model folder whose rows lie in a packed file of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_NAME

from retoken.attach.absent import ROWS_FILE, ROWS_FINGERPRINT
from retoken.attach.checkpoint import FIELD, FOLDED
from retoken.checkpoint.files import atomic_folder, read_json, writing
from retoken.checkpoint.tensorfile import DTYPES, Spec, write_tensors
from retoken.errors import CheckpointError
from retoken.serving.folding import SCALE, FoldingReader
from retoken.serving.packed import BLOCK_BYTES, PackedFile, pack
from retoken.serving.reader import TABLE, FolderReader, RowReader, kept_as, open_tensors

NAME = "rows.safetensors"
BESIDE = (
    *("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "chat_template*", "*.model"),
)
"""Files of a model folder that go into an artefact as they are."""
OnProgress = Callable[[int, int], None]
"""Told (tokens done, tokens in all) after each block of rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """What was written."""

    out: str
    rows: str
    """Row type."""
    folded: bool
    tokens: int
    """V."""
    kept: int
    """Tokens whose rows are stored; the others', pruned, are zero."""
    record_bytes: int
    """Bytes of a token's record."""
    rows_bytes: int
    """Size of the packed file."""
    backbone_bytes: int
    """Size of model.safetensors, which holds everything else."""
    fingerprint: str
    """Of the rows."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class _Watched:
    """A reader that tells how far it has been read."""

    def __init__(self, reader: RowReader, on_progress: OnProgress) -> None:
        self._reader, self._on_progress = reader, on_progress
        self.folded, self.shape, self.some = reader.folded, reader.shape, reader.some

    def block(self, start: int, stop: int) -> dict[int, Tensor]:
        """Rows of successive tokens."""
        self._on_progress(stop, self.shape()[0])
        return self._reader.block(start, stop)


def source_of(folder: Path, fold: bool) -> RowReader:
    """The rows of a model folder as an artefact is to have them, before they are rounded.

    Raises:
        CheckpointError: the folder has no tables, or is broken.
        ConfigError: it is to be folded and is so already.
    """
    return FoldingReader.of_folder(folder) if fold else FolderReader(folder)


def write_artifact(
    folder: Path,
    out: Path,
    *,
    fold: bool = False,
    rows: str | None = None,
    kept: Tensor | None = None,
    beside: Callable[[Path], Any] = lambda folder: None,
    on_progress: OnProgress = lambda done, total: None,
) -> Artifact:
    """Write an artefact of a model folder, block by block, atomically.

    Args:
        folder: an attached model as `save_pretrained` or `retoken export` wrote it, folded or not.
        out: the folder to make.
        fold: fold rows as they pass (Eq. 8).
        rows: float32, bfloat16, int8 or float8_e4m3; None: the type that keeps them as they are.
        kept: [V] bool: tokens whose rows are stored; None: all.
        beside: puts more into the folder before it takes its name.
        on_progress: told of each block of rows.

    Raises:
        CheckpointError: the folder is broken or has no tables.
        ConfigError: no such row type, or folded already.
        TrainingError: the disk is full or refuses.
    """
    reader = source_of(folder, fold)
    rows = rows or kept_as(FolderReader(folder).block(0, 1))
    with writing(out), atomic_folder(out) as partial:
        rows_bytes = pack(_Watched(reader, on_progress), partial / NAME, rows, kept)
        packed = PackedFile(partial / NAME)
        size = _write_weights(folder, partial / SAFE_WEIGHTS_NAME, reader)
        _write_config(folder, partial, packed)
        for pattern in BESIDE:
            for file in filter(Path.is_file, folder.glob(pattern)):
                shutil.copyfile(file, partial / file.name)
        beside(partial)
    return Artifact(
        out=str(out),
        rows=rows,
        folded=packed.layout.folded,
        tokens=packed.layout.vocab_size,
        kept=packed.layout.vocab_size if kept is None else int(kept.sum()),
        record_bytes=packed.layout.record_bytes,
        rows_bytes=rows_bytes,
        backbone_bytes=size,
        fingerprint=packed.fingerprint,
    )


def _write_weights(folder: Path, target: Path, reader: RowReader) -> int:
    """model.safetensors: everything but tables, and of folded modulators what is left of their scales."""
    tensors: dict[str, Any] = {k: v for k, v in open_tensors(folder).items() if not TABLE.fullmatch(k)}
    scales: dict[str, Tensor] = {}
    if isinstance(reader, FoldingReader):
        for layer in reader.scales:
            key, scale = SCALE.format(layer), reader.merged_scale(layer)
            tensors.pop(key)
            if scale is not None:
                scales[key] = scale.contiguous()
    specs = {key: _spec(folder, key, part) for key, part in tensors.items()}
    specs |= {key: Spec(scale.dtype, tuple(scale.shape)) for key, scale in scales.items()}

    def parts(key: str) -> Iterable[Tensor]:
        return [scales[key]] if key in scales else _blocks(tensors[key], specs[key])

    return write_tensors(target, specs, parts, {"format": "pt"}).bytes


def _spec(folder: Path, key: str, part: Any) -> Spec:
    kind = part.get_dtype()
    if kind not in DTYPES:
        raise CheckpointError(f"{folder}: {key} is of type {kind}; accepted: {', '.join(DTYPES)}")
    return Spec(DTYPES[kind], tuple(part.get_shape()))


def _blocks(part: Any, spec: Spec) -> Iterator[Tensor]:
    """A tensor in order, some megabytes of rows at a time."""
    if not spec.shape or not spec.bytes:
        yield torch.as_tensor(part[...])
        return
    step = max(BLOCK_BYTES * spec.shape[0] // spec.bytes, 1)
    for start in range(0, spec.shape[0], step):
        yield part[start : start + step].contiguous()


def _write_config(folder: Path, target: Path, packed: PackedFile) -> None:
    """config.json, which says where the rows are."""
    config = read_json(folder / "config.json")
    written = dict(config[FIELD])
    if packed.layout.folded:
        written["modulator"] = {**written["modulator"], FOLDED: True}
    config[FIELD] = {**written, ROWS_FILE: packed.path.name, ROWS_FINGERPRINT: packed.fingerprint}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (target / "config.json").write_text(text, encoding="utf-8")
