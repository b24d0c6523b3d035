"""Filling a model, its optimizer and the random state from a checkpoint of any number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from retoken.checkpoint.chunks import Canonical, Chunk, canonical_chunk, of_dtensor, rows_of, whole
from retoken.checkpoint.decay import settled_rows, waits
from retoken.checkpoint.drive import load_chunks
from retoken.checkpoint.folders import Checkpoint
from retoken.checkpoint.index import Index
from retoken.checkpoint.peers import Peers
from retoken.checkpoint.state import OPTIMIZER, RNG, model_tensors, parameters_of, pinned
from retoken.checkpoint.storage import ShardReader
from retoken.checkpoint.tensorfile import Spec
from retoken.errors import CheckpointError


class Restorer:
    """Reads one checkpoint into a run. Every method is a collective of its processes."""

    def __init__(
        self, found: Checkpoint, canonical: Mapping[str, Canonical] | None = None, peers: Peers | None = None
    ) -> None:
        """`canonical`: {parameter name: how it is divided}, for tables that are divided in another way."""
        self.path, self.files = found.path, found.tensors()
        self.world_size = found.world_size
        self.canonical, self.peers = canonical or {}, peers or Peers()

    def model(self, model: nn.Module, *, to_train: bool = True) -> None:
        """Every parameter and saved buffer, in place.

        Args:
            model: Built as it was trained; its values do not matter.
            to_train: As training left them. Or as a reader wants them: in the model's types, and decayed.

        Raises:
            CheckpointError: A tensor is missing, unknown, misshapen or, to train, of another type.
        """
        lives = list(model_tensors(model))
        check_names(
            self.path, self.files.index, {live.key: self._shape_of(live.owner, live.tensor) for live in lives}
        )
        for live in lives:
            found = self.files.index[live.key].spec.dtype
            if to_train and found != live.tensor.dtype:
                raise CheckpointError(f"{self.path}: {live.key} is {found}; expected {live.tensor.dtype}")
        here: dict[str, Chunk] = {}
        for live in lives:
            if not to_train and waits(self.files, live.key):
                self._settled(live.key, live.tensor)
            elif live.owner not in self.canonical:
                here |= _in_place(live.key, live.tensor)
        self._read(here)
        for live in lives:
            if live.owner in self.canonical:
                live.tensor.copy_(self._rows(live.key, self.canonical[live.owner], live.tensor))

    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """The state of every parameter; one that has none in the checkpoint gets none.

        Raises:
            CheckpointError: It is of a parameter that the model lacks, or of another shape.
        """
        known = {pinned(name): (name, p, group) for name, p, group in parameters_of(optimizer)}
        here: dict[str, Chunk] = {}
        states: dict[nn.Parameter, dict[str, Tensor]] = {}
        for key, entry in self.files.index.items():
            if not key.startswith(OPTIMIZER):
                continue
            name, _, what = key.removeprefix(OPTIMIZER).rpartition(".")
            if name not in known:
                raise CheckpointError(f"{self.path}: holds {key}, of a parameter which the model lacks")
            owner, parameter, group = known[name]
            self._check_state(key, entry.spec, self._shape_of(owner, parameter))
            layout = self.canonical.get(owner)
            if layout is not None and entry.spec.shape:
                value = self._rows(key, layout, parameter.detach())
            else:
                value = _empty_state(entry.spec, parameter, group)
                here |= _in_place(key, value)
            states.setdefault(parameter, {})[what] = value
        self._read(here)
        for parameter, state in states.items():
            optimizer.state[parameter] = state

    def rng(self, device: torch.device) -> None:
        """This process's random state; with another number of processes, the first one's."""
        rank = self.peers.rank if self.world_size == self.peers.size else 0
        torch.set_rng_state(self.files.read(f"{RNG}{rank}.cpu"))
        if device.type == "cuda" and f"{RNG}{rank}.cuda" in self.files.index:
            torch.cuda.set_rng_state(self.files.read(f"{RNG}{rank}.cuda"), device)

    def _shape_of(self, owner: str, tensor: Tensor) -> tuple[int, ...]:
        layout = self.canonical.get(owner)
        return tuple(tensor.shape if layout is None else layout.global_shape(tensor))

    def _check_state(self, key: str, spec: Spec, shape: tuple[int, ...]) -> None:
        """State is a number, or has a value, or a few, for every row."""
        if spec.shape and spec.shape[0] != shape[0]:
            raise CheckpointError(
                f"{self.path}: {key} is {list(spec.shape)}; the parameter it belongs to is {list(shape)}"
            )

    def _settled(self, key: str, whole: Tensor) -> None:
        first = 0
        for block in settled_rows(self.files, key):
            whole[first : first + len(block)] = block
            first += len(block)

    def _rows(self, key: str, layout: Canonical, like: Tensor) -> Tensor:
        """One divided tensor; one at a time, so that its rows are the only copy."""
        spec, peers = self.files.index[key].spec, self.peers
        first, last = rows_of(peers.rank, peers.size, spec.shape[0])
        rows = torch.empty((last - first, *spec.shape[1:]), dtype=spec.dtype, device=like.device)
        self._read({key: canonical_chunk(rows, peers.rank, peers.size, spec.shape)})
        return layout.from_canonical(rows, like)

    def _read(self, chunks: dict[str, Chunk]) -> None:
        load_chunks(chunks, ShardReader(self.files), self.peers)


def check_names(path: Path, index: Index, wanted: Mapping[str, tuple[int, ...]]) -> None:
    """A checkpoint holds the tensors of a model, of these shapes, and no others.

    Raises:
        CheckpointError: It does not.
    """
    for key in index:
        if not key.startswith((OPTIMIZER, RNG)) and key not in wanted:
            raise CheckpointError(f"{path}: holds {key}, which the model lacks")
    for key, shape in wanted.items():
        if key not in index:
            raise CheckpointError(f"{path}: {key} is not in the checkpoint")
        if index[key].spec.shape != shape:
            raise CheckpointError(f"{path}: {key} is {list(index[key].spec.shape)}; expected {list(shape)}")


def _in_place(key: str, tensor: Tensor) -> dict[str, Chunk]:
    chunk = of_dtensor(tensor) if isinstance(tensor, DTensor) else whole(tensor)
    return {} if chunk is None else {key: chunk}


def _empty_state(spec: Spec, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
    """Memory for a parameter's state, where the optimizer would have put it."""
    if isinstance(parameter, DTensor) and spec.shape == tuple(parameter.shape):
        return torch.empty_like(parameter, dtype=spec.dtype, requires_grad=False)
    on_host = not spec.shape and not (group.get("fused") or group.get("capturable"))
    return torch.empty(spec.shape, dtype=spec.dtype, device="cpu" if on_host else parameter.device)
