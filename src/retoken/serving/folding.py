"""Folding a model folder's rows as they are read: no table is ever whole in memory (Eq. 8)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retoken.attach.checkpoint import read_field
from retoken.attach.families import dissect
from retoken.checkpoint.build import build_model
from retoken.config import ModulatorConfig, require_foldable
from retoken.errors import CheckpointError, ConfigError
from retoken.nn import TokenTable
from retoken.nn.folded import Folded, fold_modulator
from retoken.nn.stack import build_modulator
from retoken.ops.precision import widen
from retoken.serving.reader import FolderReader, RowReader, open_tensors

SCALE = "retoken.layers.{}.scale"


class _RowsAtHand(TokenTable):
    """Some tokens' rows, as a table."""

    def __init__(self, rows: Tensor) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(rows, requires_grad=False)


class FoldingReader:
    """The rows of a model as it was trained, folded: float32, or wider, before they are rounded to a type."""

    folded = True

    def __init__(
        self, reader: RowReader, config: ModulatorConfig, scales: Mapping[int, Tensor], depth: int
    ) -> None:
        """Reads nothing yet.

        Args:
            reader: the rows as trained.
            config: the modulator's.
            scales: {layer: s [D]}.
            depth: the number of layers of the backbone.
        """
        self.reader, self.config, self.scales, self.depth = reader, config, dict(scales), depth

    @classmethod
    def of_folder(cls, folder: Path) -> FoldingReader:
        """The rows of a folder that `save_pretrained` wrote.

        Raises:
            CheckpointError: a file is broken, or a modulator is missing.
            ConfigError: the model is folded already, or has nothing to fold.
        """
        reader = FolderReader(folder)
        if reader.folded:
            raise ConfigError(f"{folder} is folded already; accepted: a model as it was trained")
        skeleton: Any = build_model(folder, device="meta")
        family, config = read_field(skeleton.config)
        require_foldable(config)
        tensors = open_tensors(folder)
        missing = [SCALE.format(i) for i in reader.slices if SCALE.format(i) not in tensors]
        if missing:
            raise CheckpointError(f"{folder}: {missing[0]} is not there ({len(missing)} missing in all)")
        scales = {i: tensors[SCALE.format(i)][:] for i in reader.slices}
        return cls(reader, config, scales, len(dissect(skeleton, family).layers))

    def shape(self) -> tuple[int, ...]:
        """Of each table."""
        return self.reader.shape()

    def block(self, start: int, stop: int) -> dict[int, Tensor]:
        """Folded rows of successive tokens."""
        return self._fold(self.reader.block(start, stop))

    def some(self, ids: Tensor) -> dict[int, Tensor]:
        """Folded rows of any tokens."""
        return self._fold(self.reader.some(ids))

    def merged_scale(self, layer: int) -> Tensor | None:
        """The scale [D] that a folded layer keeps, in the type it has; None where the rows hold it."""
        rows = self.reader.block(0, 1)[layer]
        scale = getattr(self._folded(layer, widen(rows)), "scale", None)
        return None if scale is None else scale.detach()

    def _fold(self, rows: dict[int, Tensor]) -> dict[int, Tensor]:
        return {i: self._folded(i, widen(part)).table.weight.detach() for i, part in rows.items()}

    def _folded(self, layer: int, rows: Tensor) -> Folded:
        """The module that a layer of so many tokens would carry. It takes over the rows."""
        meta, width = torch.device("meta"), rows.shape[-1]
        table = _RowsAtHand(rows.clone())
        module = build_modulator(
            self.config, len(rows), width, self.depth, meta, None, lambda *options: table
        )
        module.scale = nn.Parameter(self.scales[layer], requires_grad=False)
        return fold_modulator(self.config, module, self.depth)
