"""Both parts of `retoken bench exchange`: fetching alone, and the ladder of training steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retoken.bench.alone import Alone
from retoken.bench.climb import Climbed
from retoken.bench.turns import write
from retoken.plan import fit


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was asked for of them."""

    alone: Alone | None
    """Fetching alone; None where not asked for."""
    ladders: list[Climbed]
    """One for each preset and variant."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, without single turns."""
        alone = self.alone
        return {
            "alone": {"peer": alone.peer, "fetchings": list(map(asdict, alone.fetchings))} if alone else None,
            "ladders": [_ladder(each) for each in self.ladders],
        }

    def write_turns(self, path: Path) -> None:
        """Every turn, as CSV."""
        parts = {"alone": self.alone.turns} if self.alone else {}
        write(path, parts | {each.name: each.turns for each in self.ladders})

    def write_steps(self, path: Path, held_out: Sequence[str]) -> None:
        """Median steps with their work: what the plan's time model is fitted to (`retoken plan --fit`).

        Args:
            path: A CSV; `retoken.plan.fit` says its columns.
            held_out: Presets whose steps only check the fit.
        """
        lines = [
            line for each in self.ladders for line in each.measurements(held_out=each.preset in held_out)
        ]
        fit.write(path, lines)


def _ladder(found: Climbed) -> dict[str, Any]:
    sizes = ("preset", "variant", "ranks", "tokens_per_step", "table_params", "backbone_params")
    return {name: getattr(found, name) for name in sizes} | {"rungs": list(map(asdict, found.rungs))}
