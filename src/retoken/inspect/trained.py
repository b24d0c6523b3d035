"""Rows that training never touched: by the optimizer's state where there is one, else by counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from retoken.checkpoint import checked, is_checkpoint, newest_path
from retoken.checkpoint.index import TensorFiles
from retoken.train.folder import RunFolder

STATE = "optimizer.retoken.layers.{}.table."
MOMENTS = ("mean_sq", "exp_avg_sq")
"""Second moments of the optimizers of tables: zero for a row that never had a gradient."""


@dataclass(frozen=True, kw_only=True)
class Touched:
    """Which rows training has moved."""

    source: str
    """How that is known."""
    token_V: Tensor
    """[V] bool: tokens with a row that had a gradient."""
    row_share: float
    """Share of all rows, of every layer and modulator, that had one."""


def touched(folder: Path, layers: Iterable[int], count_V: Tensor | None) -> Touched | None:
    """What is known of it.

    Args:
        folder: a training checkpoint, or a model folder; for one in a run, the run's newest checkpoint tells.
        layers: those that carry a table.
        count_V: how often each token occurs in the training split; it may have been read in part only.

    Returns:
        None where neither the optimizer's state nor counts are at hand.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    where = _checkpoint_of(folder)
    if where is not None:
        files = checked(where).tensors()
        found = [rows for layer in layers if (rows := _of_layer(files, layer)) is not None]
        if found:
            rows_LV = torch.stack([rows.view(len(rows), -1) for rows in found])
            return Touched(
                source=f"the optimizer's state in {where}",
                token_V=rows_LV.any(-1).any(0),
                row_share=rows_LV.double().mean().item(),
            )
    if count_V is None:
        return None
    seen = count_V > 0
    source = "the counts of the store's training split, of which a run may have read a part only"
    return Touched(source=source, token_V=seen, row_share=seen.double().mean().item())


def _checkpoint_of(folder: Path) -> Path | None:
    if is_checkpoint(folder):
        return folder
    run = RunFolder(folder.resolve().parent)
    return newest_path(run.checkpoints) if folder.resolve() == run.model else None


def _of_layer(files: TensorFiles, layer: int) -> Tensor | None:
    """[V] or [V, E] bool: rows of a layer that had a gradient; None: nothing kept tells."""
    for name in MOMENTS:
        key = STATE.format(layer) + name
        if key in files.index:
            moment, table = files.read(key), files.index[f"retoken.layers.{layer}.table"].spec.shape
            return moment != 0 if moment.dim() < len(table) else (moment != 0).any(-1)
    return None
