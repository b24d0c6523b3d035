"""`retoken export --prune`: choose rows that are worth least, leave them out, measure what is served."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from retoken.cli.export_view import Bars
from retoken.eval import open_checkpoint
from retoken.inspect import Subject
from retoken.inspect.importance import estimate
from retoken.inspect.pruning import by_importance, fewest, kept_mask, kept_number
from retoken.serving.artifact import Artifact
from retoken.train.world import World


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    """What was left out, and what that costs."""

    left_out: int
    """Tokens without rows."""
    bytes_before: int
    """Of all records in the same row type."""
    bytes_after: int
    """Of the packed file."""
    val_loss_before: float
    """Held-out loss of the checkpoint, nats per token."""
    val_loss_after: float
    """That of the artefact, read from its file."""
    measured_tokens: int
    """Held-out tokens that both were measured on; they had no part in estimating what rows are worth."""

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.val_loss_after - self.val_loss_before

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "difference": self.difference}


def write_pruned(
    source: Path,
    store: Path,
    write: Callable[[Tensor], Artifact],
    world: World,
    eval_tokens: int,
    bar: Bars,
    *,
    share: float | None,
    allowed: float | None,
) -> tuple[Artifact, Pruned]:
    """Write an artefact without the rows that are worth least.

    Args:
        source: the checkpoint; its model is loaded whole.
        store: token store with a held-out split.
        write: writes the artefact with the rows of the tokens that a mask [V] names.
        world: where to compute.
        eval_tokens: of both halves of the held-out text; 0: all.
        bar: shows progress.
        share: of the tokens, to be left out.
        allowed: or what leaving rows out may cost, nats per token.

    Raises:
        CheckpointError: rows are folded or packed already.
        DataError: the store is broken, too short, or made with another tokenizer.
    """
    subject = Subject.of_store(open_checkpoint(str(source)), store, world, max_tokens=eval_tokens)
    before = subject.loss()
    order_V = by_importance(subject, estimate(subject))
    if share is not None:
        kept = kept_number(subject, 1 - share)
    else:
        assert allowed is not None
        kept, _ = fewest(subject, order_V, allowed, before, bar("choosing rows"))
    made = write(kept_mask(order_V, kept))
    served: Any = open_checkpoint(made.out, device=world.device).model
    return made, Pruned(
        left_out=made.tokens - made.kept,
        bytes_before=made.tokens * made.record_bytes,
        bytes_after=made.rows_bytes,
        val_loss_before=before,
        val_loss_after=replace(subject, model=served.to(world.device)).loss(),
        measured_tokens=subject.measured_tokens,
    )
