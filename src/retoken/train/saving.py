"""A run's checkpoints: the one it starts from, those it writes while it trains, and its model at the end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from retoken.checkpoint import (
    Canonical,
    Checkpoint,
    Peers,
    Restorer,
    Saver,
    build_model,
    described,
    host_copy,
    newest,
    read,
)
from retoken.checkpoint.export import export
from retoken.checkpoint.folders import folder_of
from retoken.data.tokens import TokenStore
from retoken.train.config import TrainConfig
from retoken.train.folder import RunFolder
from retoken.train.world import World


class Saving:
    """Every process of the run has one, and calls the same methods in the same order."""

    def __init__(self, config: TrainConfig, folder: RunFolder, world: World) -> None:
        """Look for the newest checkpoint and check every byte of it.

        Raises:
            CheckpointError: It is broken.
        """
        self._root, self._world = folder.checkpoints, world
        self._peers = Peers.open(world.timeout)
        self.found: Checkpoint | None = newest(self._root, self._peers)
        self._saver = Saver(root=self._root, keep=config.keep, peers=self._peers)
        self._canonical: Mapping[str, Canonical] = {}

    def build_model(self) -> PreTrainedModel:
        """The model that the checkpoint describes, without its values: `restore` fills them in."""
        assert self.found is not None
        return build_model(self.found.path)

    def begin(
        self, model: PreTrainedModel, optimizer: torch.optim.Optimizer, canonical: Mapping[str, Canonical]
    ) -> None:
        """What is to be saved; `canonical`: {parameter name: how that table is divided}."""
        self._model, self._optimizer, self._canonical = model, optimizer, canonical
        self._saver.texts = described(model)

    def restore(self) -> Checkpoint:
        """Fill the model, the optimizer and the random state.

        Raises:
            CheckpointError: They are not of this run.
        """
        assert self.found is not None
        restorer = Restorer(self.found, self._canonical, self._peers)
        restorer.model(self._model)
        restorer.optimizer(self._optimizer)
        restorer.rng(self._world.device)
        return self.found

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Begin to write a checkpoint; what is trained on from here is no longer in it.

        Raises:
            TrainingError: The one before could not be written.
        """
        self._saver.wait()
        chunks = host_copy(self._model, self._optimizer, self._canonical, self._world.device, self._peers)
        self._saver.save(step, chunks, state)

    def finished(self, *, wait: bool = False) -> list[Path]:
        """Checkpoints that are on the disk since this was asked last.

        Raises:
            TrainingError: One could not be written.
        """
        if wait:
            self._saver.wait()
        return self._saver.finished()

    def last_good(self) -> Path | None:
        """The newest whole checkpoint."""
        return self._saver.last_good()

    def close(self) -> None:
        """Let a checkpoint that is being written become whole."""
        self._saver.close()

    def write_model(self, step: int, target: Path, store: TokenStore) -> None:
        """The first process: the model of the last checkpoint as `save_pretrained` writes it, file to file.

        Raises:
            TrainingError: The disk is full, or does not take it.
        """
        found = read(folder_of(self._root, step))
        export(found, target, beside=lambda folder: store.tokenizer().save_pretrained(folder))
