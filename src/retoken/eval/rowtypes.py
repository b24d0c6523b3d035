"""What each row type costs in held-out loss: one model, the same tokens, rows rounded as files have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from retoken.eval.heldout import evaluate_store
from retoken.eval.loading import Loaded
from retoken.ops.quantize import STORED
from retoken.serving.artifact import source_of
from retoken.serving.computed import compute_rows
from retoken.serving.load import build_without_tables
from retoken.serving.reader import FolderReader, RowReader
from retoken.train.config import TrainConfig
from retoken.train.world import World

AS_TRAINED = "as trained"
OnProgress = Callable[[int, int], None]
"""Told (models measured, models in all)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCost:
    """A row type, by its size and its loss."""

    rows: str
    """Row type; "as trained" for the checkpoint itself."""
    record_bytes: int
    """Bytes of a token's record, all layers."""
    bytes: int
    """Of all records."""
    val_loss: float
    """Held-out loss in nats per token."""
    difference: float
    """val_loss minus that of the checkpoint as it was trained."""
    chosen: bool = False
    """Whether the artefact has this type."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RowTypes:
    """An artefact, and the model it was made of, to be measured on a store."""

    name: str
    """What messages call the model."""
    source: Path
    """The model folder the artefact was made of, with tables."""
    artifact: Path
    fold: bool
    """Whether rows were folded on the way."""
    tokenizer: PreTrainedTokenizerBase | None
    """The model's; the store must have been made with it."""
    run: TrainConfig | None
    """The run that trained it, which says context and arithmetic; None: the model's own context, float32."""

    def measure(
        self,
        store: Path,
        world: World,
        chosen: str,
        max_tokens: int,
        on_progress: OnProgress = lambda done, total: None,
    ) -> list[RowCost]:
        """The checkpoint as it was trained, then every row type.

        Args:
            store: a token store; its held-out split is used.
            world: where to compute.
            chosen: the artefact's row type.
            max_tokens: tokens to evaluate, the same for all, spread over the split; 0: all.
            on_progress: told of each model.

        Raises:
            DataError: the store is broken, too short, or made with another tokenizer.
        """
        found: list[RowCost] = []
        for done, cost in enumerate(self._costs(store, world, chosen, max_tokens), 1):
            found.append(cost)
            on_progress(done, len(STORED) + 1)
        return found

    def _costs(self, store: Path, world: World, chosen: str, max_tokens: int) -> Iterator[RowCost]:
        def measured(loaded: Loaded, reader: RowReader, rows: str | None) -> RowCost:
            layout = compute_rows(loaded.model, reader, rows)
            found = evaluate_store(loaded, store, world, max_tokens=max_tokens)
            return RowCost(
                rows=rows or AS_TRAINED,
                record_bytes=layout.record_bytes,
                bytes=layout.bytes,
                val_loss=found.val_loss,
                difference=0.0,
            )

        first = measured(self._open(self.source, world), FolderReader(self.source), None)
        yield first
        loaded, reader = self._open(self.artifact, world), source_of(self.source, self.fold)
        for rows in STORED:
            cost = measured(loaded, reader, rows)
            yield replace(cost, difference=cost.val_loss - first.val_loss, chosen=rows == chosen)

    def _open(self, folder: Path, world: World) -> Loaded:
        model: Any = build_without_tables(folder, dtype=torch.float32)
        return Loaded(name=self.name, model=model.to(world.device), tokenizer=self.tokenizer, run=self.run)
