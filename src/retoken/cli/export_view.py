"""What `retoken export` shows: bars on a terminal, and the artefact with the loss of each row type."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retoken.eval.rowtypes import RowCost
    from retoken.serving.artifact import Artifact

Bars = Callable[[str], Callable[[int, int], None]]
"""A new bar of this name; told (done, total)."""


@contextmanager
def bars() -> Iterator[Bars]:
    """Bars on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda name: lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as shown:

        def bar(name: str) -> Callable[[int, int], None]:
            task = shown.add_task(name, total=None)
            return lambda done, total: shown.update(task, completed=done, total=total)

        yield bar


def lines_of(made: Artifact, costs: list[RowCost], with_tokenizer: bool) -> list[str]:
    """The artefact in words."""
    folded = "folded, " if made.folded else ""
    lines = [
        f"{made.out}: {folded}rows in {made.rows}, for retoken.load and from_pretrained",
        f"  backbone  {made.backbone_bytes / 1e6:,.1f} MB",
        f"  rows      {made.rows_bytes / 1e6:,.1f} MB, {made.record_bytes:,} bytes for each of "
        f"{made.tokens:,} tokens",
    ]
    if not with_tokenizer:
        lines.append("  without a tokenizer: neither the model's folder nor its data has one")
    return lines + _table(costs)


def _table(costs: list[RowCost]) -> list[str]:
    """A line a row type."""
    if not costs:
        return ["  loss by row type not measured: --data STORE measures it"]
    lines = [f"  {'rows':13}{'bytes a token':>14}{'MB in all':>11}{'held-out loss':>15}{'difference':>12}"]
    for cost in costs:
        sizes = f"{cost.record_bytes:>14,}{cost.bytes / 1e6:>11,.1f}"
        mark = "  <- written" if cost.chosen else ""
        lines.append(f"  {cost.rows:13}{sizes}{cost.val_loss:>15.5f}{cost.difference:>+12.5f}{mark}")
    return lines
