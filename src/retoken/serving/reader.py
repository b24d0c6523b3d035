"""Where rows are read from before they are placed: a model's tables, or a model folder's files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from retoken.attach.absent import ROWS_FILE
from retoken.attach.checkpoint import FIELD, is_folded, read_written
from retoken.checkpoint.files import read_json
from retoken.config import require_modulator
from retoken.errors import CheckpointError
from retoken.ops.quantize import STORED
from retoken.serving.layout import RecordLayout

LIKE = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float32"}
"""The row type that keeps a table's rows as they are."""
TABLE = re.compile(r"retoken\.layers\.\d+\.table")


class RowReader(Protocol):
    """Gives rows of every layer."""

    @property
    def folded(self) -> bool:
        """Whether they are of a folded model (Eq. 8)."""
        ...

    def shape(self) -> tuple[int, ...]:
        """Of each table: [V, D] or [V, E, D]."""
        ...

    def block(self, start: int, stop: int) -> dict[int, Tensor]:
        """{layer: rows [stop - start, ...]}."""
        ...

    def some(self, ids: Tensor) -> dict[int, Tensor]:
        """{layer: rows [R, ...]} of token ids [R]."""
        ...


class TensorReader:
    """Rows of tables that are in memory."""

    def __init__(self, tables: Mapping[int, Tensor], folded: bool) -> None:
        self.tables, self.folded = dict(tables), folded

    def shape(self) -> tuple[int, ...]:
        """Of each table."""
        return tuple(next(iter(self.tables.values())).shape)

    def block(self, start: int, stop: int) -> dict[int, Tensor]:
        """Rows of successive tokens."""
        return {layer: table[start:stop] for layer, table in self.tables.items()}

    def some(self, ids: Tensor) -> dict[int, Tensor]:
        """Rows of any tokens."""
        return {layer: table[ids.to(table.device)] for layer, table in self.tables.items()}


def open_tensors(folder: Path) -> dict[str, Any]:
    """{key: safetensors slice} of a model folder's files, in one file or several; nothing is read yet.

    Raises:
        CheckpointError: a file is missing or broken.
    """
    try:
        index, files = folder / SAFE_WEIGHTS_INDEX_NAME, {SAFE_WEIGHTS_NAME}
        if index.is_file():
            files = set(read_json(index)["weight_map"].values())
        slices: dict[str, Any] = {}
        for file in sorted(files):
            opened = safe_open(str(folder / file), framework="pt")
            slices.update((key, opened.get_slice(key)) for key in opened.keys())  # noqa: SIM118
        return slices
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder}: no readable safetensors model ({error})") from None


class FolderReader:
    """Rows in the safetensors files of a folder that `save_pretrained` or `retoken export` wrote."""

    def __init__(self, folder: Path) -> None:
        """Opens its files; no row is read.

        Raises:
            CheckpointError: a file is missing or broken, or holds no tables.
        """
        self.folder = folder
        written = read_json(folder / "config.json").get(FIELD)
        self.folded = is_folded(written)
        if isinstance(written, dict) and ROWS_FILE in written:
            raise CheckpointError(
                f"{folder}: its rows are packed already; accepted: the folder it was made of"
            )
        if isinstance(written, dict):
            require_modulator(read_written(written)[1], str(folder))
        found = {key: part for key, part in open_tensors(folder).items() if TABLE.fullmatch(key)}
        self.slices: dict[int, Any] = {int(key.split(".")[2]): part for key, part in found.items()}
        self.slices = dict(sorted(self.slices.items()))
        if not self.slices:
            raise CheckpointError(f"{folder}: holds no retoken.layers.*.table; accepted: an attached model")

    def shape(self) -> tuple[int, ...]:
        """Of each table."""
        return next(iter(self.shapes().values()))

    def shapes(self) -> dict[int, tuple[int, ...]]:
        """{layer: its table's}."""
        return {layer: tuple(part.get_shape()) for layer, part in self.slices.items()}

    def block(self, start: int, stop: int) -> dict[int, Tensor]:
        """Rows of successive tokens."""
        return {layer: part[start:stop] for layer, part in self.slices.items()}

    def some(self, ids: Tensor) -> dict[int, Tensor]:
        """Rows of any tokens."""
        each = [self.block(i, i + 1) for i in ids.tolist()]
        return {layer: torch.cat([rows[layer] for rows in each]) for layer in self.slices}


def kept_as(rows: Mapping[int, Tensor]) -> str:
    """The row type that keeps such rows as they are; what it says where there is none is no row type."""
    return LIKE.get(next(iter(rows.values())).dtype, f"none of {', '.join(STORED)}")


def layout_of(reader: RowReader, rows: str | None = None) -> RecordLayout:
    """The layout of a reader's rows; `rows` None: the type that keeps them as they are.

    Raises:
        ConfigError: no such row type, or rows that none keeps as they are.
    """
    shape = reader.shape()
    first = reader.block(0, 1)
    if rows is None:
        rows = kept_as(first)
    return RecordLayout(
        vocab_size=shape[0],
        layers=tuple(first),
        rows_per_token=shape[1] if len(shape) == 3 else None,
        width=shape[-1],
        rows=rows,
        folded=reader.folded,
    )
