"""A checkpoint's tensors on their way into a served model: those of the modulators are taken out here."""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from retoken.errors import CheckpointError
from retoken.serving.packed import FORMAT, sampled
from retoken.serving.pruned import NUMBERS
from retoken.serving.reader import TABLE
from retoken.serving.source import PlacedRows

PREFIX = "retoken."


def checkpoint_name(parameter: str) -> str:
    """The key of a parameter of the stack: tables and routers are modules here, single tensors on disk."""
    return parameter.removesuffix(".weight")


class Incoming:
    """Takes the modulators' tensors out of a stream, and says afterwards what was missing."""

    def __init__(self, stack: Any, placed: bool) -> None:
        """Args: stack: the modulators; placed: whether rows lie elsewhere, and are not to be loaded."""
        self.source: PlacedRows | None = stack.source
        self.parameters = {f"{PREFIX}{name}": p for name, p in stack.named_parameters()}
        self.wanted = {checkpoint_name(name): name for name in self.parameters}
        self.placed = placed
        self.loaded: set[str] = set()
        self.packed = False
        """Whether a packed file went by."""
        self.samples: dict[int, Tensor] = {}
        """{layer: some rows of it} of tables that went by and are served from elsewhere."""

    @property
    def brings_rows(self) -> bool:
        """Whether rows that live elsewhere went by."""
        return self.packed or bool(self.samples)

    def rest(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The backbone's tensors of a stream; the others are loaded as they pass."""
        for name, tensor in weights:
            if name.startswith(PREFIX):
                self._take(name, tensor)
            else:
                yield name, tensor

    def _take(self, name: str, tensor: Tensor) -> None:
        if name in (FORMAT, NUMBERS):  # the packed file lies beside the model's, and is served from there
            self.packed = True
            return
        if self.placed and TABLE.fullmatch(name):
            self._take_rows(int(name.split(".")[2]), tensor)
            return
        if name not in self.wanted and name not in self.parameters:
            raise CheckpointError(f"{name} is in the checkpoint, but config.json attaches no such tensor")
        own = self.wanted.get(name, name)
        parameter = self.parameters[own]
        if tensor.shape != parameter.shape:
            raise CheckpointError(
                f"{name} is {list(tensor.shape)} in the checkpoint, {list(parameter.shape)} by config.json"
            )
        _fill(parameter, tensor)
        self.loaded.add(own)

    def _take_rows(self, layer: int, rows: Tensor) -> None:
        """Rows that live elsewhere: into memory where that is where; else seen whether they are the same."""
        if self.source is not None and self.source.replaceable:
            self.source.replace(layer, rows)
        else:
            self.samples[layer] = rows[sampled(len(rows))].clone()

    def refuse_gaps(self) -> None:
        """Raise where a tensor has not come.

        Raises:
            CheckpointError: which one, and how many.
        """
        missing = sorted(key for key, name in self.wanted.items() if name not in self.loaded)
        if missing:
            raise CheckpointError(
                f"config.json promises token-indexed parameters, but {missing[0]} is not in the checkpoint "
                f"({len(missing)} missing in all)"
            )

    def check_samples(self, reader: Any) -> None:
        """Refuse tables that went by and are not those of the folder that rows are served from.

        Raises:
            CheckpointError: they are not: rows in a file cannot be changed by sending them.
        """
        for layer, rows in self.samples.items():
            ids = sampled(reader.shape()[0])
            if not torch.equal(reader.some(ids)[layer], rows.cpu()):
                raise CheckpointError(
                    f"retoken.layers.{layer}.table was sent, but its rows are read from a file; accepted: "
                    'reload_weights with that folder, or tables="host"'
                )


def _fill(parameter: Tensor, tensor: Tensor) -> None:
    """As vLLM's own layers are filled: while it reloads in place, a parameter has a loader of its own."""
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    getattr(parameter, "weight_loader", default_weight_loader)(parameter, tensor)
