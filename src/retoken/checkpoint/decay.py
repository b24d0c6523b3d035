"""Decay that waits. Optimizers of touched rows let a row's decay wait until the row is read, and a checkpoint
keeps rows as they are, so that saving changes nothing in a run. Whoever reads the model reads them decayed.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from retoken.checkpoint.index import TensorFiles
from retoken.checkpoint.state import OPTIMIZER
from retoken.ops.row_update import DecayRows, update_rows


def waits(files: TensorFiles, key: str) -> bool:
    """Whether rows of a table may have decay pending."""
    return f"{OPTIMIZER}{key}.settled" in files.index


def settled_rows(files: TensorFiles, key: str) -> Iterator[Tensor]:
    """A tensor in blocks of rows, as `TensorFiles.rows`, with all decay that its rows have pending."""
    if not waits(files, key):
        yield from files.rows(key)
        return
    settled_V = files.read(f"{OPTIMIZER}{key}.settled")
    log_decay = float(files.read(f"{OPTIMIZER}{key}.log_decay"))
    first = 0
    for block in files.rows(key):
        settled = settled_V[first : first + len(block)]
        ids = (settled != log_decay).nonzero()[:, 0]
        update_rows([DecayRows(weight=block, ids_R=ids, settled_V=settled, log_decay=log_decay)])
        yield block
        first += len(block)
