"""What `retoken export` shows: bars on a terminal, and the artefact with the loss of each row type."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from retoken.cli.export_prune import Pruned
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


def lines_of(made: Artifact, costs: list[RowCost], pruned: Pruned | None, with_tokenizer: bool) -> list[str]:
    """The artefact in words."""
    folded = "folded, " if made.folded else ""
    lines = [
        f"{made.out}: {folded}rows in {made.rows}, for retoken.load and from_pretrained",
        f"  backbone  {made.backbone_bytes / 1e6:,.1f} MB",
        f"  rows      {made.rows_bytes / 1e6:,.1f} MB, {made.record_bytes:,} bytes for each of "
        f"{made.kept:,} records",
    ]
    if not with_tokenizer:
        lines.append("  without a tokenizer: neither the model's folder nor its data has one")
    return lines + (_table(costs) if pruned is None else _pruned(made, pruned))


def _pruned(made: Artifact, pruned: Pruned) -> list[str]:
    """What was left out, and what that costs."""
    share = 100 * pruned.left_out / made.tokens
    return [
        f"  pruned    {pruned.left_out:,} of {made.tokens:,} tokens ({share:.1f} %) are without rows: "
        f"{pruned.bytes_before / 1e6:,.1f} MB -> {pruned.bytes_after / 1e6:,.1f} MB",
        f"  held-out loss  {pruned.val_loss_before:.5f} before, {pruned.val_loss_after:.5f} as served "
        f"({pruned.difference:+.5f}), on {pruned.measured_tokens:,} tokens that did not rank rows",
    ]


def _table(costs: list[RowCost]) -> list[str]:
    """A line a row type."""
    if not costs:
        return ["  loss by row type not measured: --data STORE measures it"]
    lines = [f"  {'rows':13}{'bytes a record':>15}{'MB in all':>11}{'held-out loss':>15}{'difference':>12}"]
    for cost in costs:
        sizes = f"{cost.record_bytes:>15,}{cost.bytes / 1e6:>11,.1f}"
        mark = "  <- written" if cost.chosen else ""
        lines.append(f"  {cost.rows:13}{sizes}{cost.val_loss:>15.5f}{cost.difference:>+12.5f}{mark}")
    return lines
