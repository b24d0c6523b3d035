"""One checkpoint, or two on the same tokens, on several texts, each broken down by kinds of token."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retoken.data.tokenizer import check_same, token_texts
from retoken.data.tokens import TokenStore
from retoken.errors import ConfigError, DataError
from retoken.eval.breakdown import GroupLoss, GroupSums, Observed, losses
from retoken.eval.groups import Grouping, Kind, band_grouping, position_grouping, row_grouping, whole_grouping
from retoken.eval.heldout import HeldOut, context_of, evaluate_material
from retoken.eval.loading import Loaded
from retoken.eval.material import (
    Material,
    backend_of,
    check_fit,
    store_material,
    text_material,
)
from retoken.eval.pairing import GroupDifference
from retoken.eval.parts import part_grouping
from retoken.train.world import World

OnProgress = Callable[[str], None]
"""Told what is measured next."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainLoss:
    """A checkpoint on one store or text."""

    domain: str
    """Its name; with its folders where two have the same."""
    on: str
    """The store or file."""
    held_out: HeldOut
    against: HeldOut | None
    """The other checkpoint's, on the same tokens."""
    difference: GroupDifference | None
    """Over all tokens."""
    unit: str
    """What the intervals draw: "document" or "window"."""
    units: int
    """How many there are."""
    by: dict[Kind, list[GroupLoss]]
    """Loss of every group, by kind."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy; nothing about another checkpoint, or about kinds, where there is none."""
        found: dict[str, Any] = {"domain": self.domain, "on": self.on, **self.held_out.to_dict()}
        if self.against and self.difference:
            pair = {name: getattr(self.difference, name) for name in ("difference", "low", "high")}
            found |= {"against": self.against.to_dict(), **pair, "unit": self.unit, "units": self.units}
        if self.by:
            found["by"] = {kind: [each.to_dict() for each in groups] for kind, groups in self.by.items()}
        return found


@dataclass(frozen=True, kw_only=True)
class Domains:
    """What to measure on, and how to divide it."""

    data: tuple[Path, ...] = ()
    """Token stores; their held-out splits."""
    text: tuple[Path, ...] = ()
    """UTF-8 text files."""
    by: tuple[Kind, ...] = ()
    """Kinds to divide the tokens by."""
    counts: Path | None = None
    """The store whose training split says how often a token was seen; None: `counts_of` finds it."""
    context_length: int = 0
    max_tokens: int = 0
    batch_size: int = 16

    def measure(
        self,
        loaded: Loaded,
        world: World,
        other: Loaded | None = None,
        on_progress: OnProgress = lambda name: None,
    ) -> list[DomainLoss]:
        """Loss on every domain, in the order of `data`, then `text`.

        Args:
            loaded: The checkpoint.
            world: Where to compute.
            other: A second checkpoint, measured on the same windows.
            on_progress: Told of each domain.

        Raises:
            DataError: A store or text is broken, too short, or not of the checkpoints' tokenizer.
            ConfigError: The context does not suit both checkpoints, or no store says what was seen how often.
        """
        materials = self._materials(loaded, self._context(loaded, other))
        for material in materials:  # what does not fit is told before anything is computed
            for each in (loaded, *([other] if other else [])):
                check_fit(each, material)
        counts_V = self._counts(loaded) if self.counted else None
        found = []
        for name, material in zip(_names([each.name for each in materials]), materials, strict=True):
            on_progress(name)
            groupings = [whole_grouping(), *(_grouping(kind, material, counts_V) for kind in self.by)]
            found.append(_domain(name, material, groupings, loaded, other, world))
        return found

    @property
    def counted(self) -> bool:
        """Whether a kind asks how often tokens were seen."""
        return "band" in self.by or "row" in self.by

    def _context(self, loaded: Loaded, other: Loaded | None) -> int:
        context = context_of(loaded, self.context_length)
        if other and (theirs := context_of(other, self.context_length)) != context:
            raise ConfigError(
                f"{loaded.name} is evaluated with a context of {context} and {other.name} with {theirs}; "
                "accepted: the same for both, as --context-length"
            )
        return context

    def _materials(self, loaded: Loaded, context: int) -> list[Material]:
        options = {"max_tokens": self.max_tokens, "batch_size": self.batch_size}
        stores = [store_material(folder, context, **options) for folder in self.data]
        return [*stores, *(text_material(loaded, path, context, **options) for path in self.text)]

    def _counts(self, loaded: Loaded) -> Tensor:
        store = self.counts_of(loaded)
        if loaded.tokenizer is not None:
            check_same(loaded.name, loaded.tokenizer, str(store.folder), store.tokenizer())
        return store.token_counts("train")

    def counts_of(self, loaded: Loaded) -> TokenStore:
        """The store that says how often a token was seen: `counts`, the run's own, or the only one in `data`.

        Raises:
            ConfigError: there is none of them.
            DataError: it is broken.
        """
        if self.counts is not None:
            return TokenStore.open(self.counts)
        if loaded.run is not None:
            try:
                return TokenStore.open(loaded.run.data)
            except DataError as error:
                raise ConfigError(
                    f"--by band, row: the run's store is not there ({error}); accepted: --counts STORE, "
                    "whose training split says how often a token was seen"
                ) from None
        if len(self.data) != 1:
            raise ConfigError(
                f"--by band, row: {loaded.name} lies in no run folder, and --data names {len(self.data)} "
                "stores; accepted: --counts STORE, whose training split says how often a token was seen"
            )
        return TokenStore.open(self.data[0])


def _domain(
    name: str,
    material: Material,
    groupings: Sequence[Grouping],
    loaded: Loaded,
    other: Loaded | None,
    world: World,
) -> DomainLoss:
    def observed(each: Loaded) -> tuple[HeldOut, list[GroupSums]]:
        sums = Observed(groupings, material.units, material.unit_count, material.token_bytes)
        return evaluate_material(each, material, world, sums), sums.summed(world)

    held_out, ours = observed(loaded)
    against, theirs = observed(other) if other else (None, [None] * len(ours))
    (everything,), *kinds = [losses(mine, its) for mine, its in zip(ours, theirs, strict=True)]
    return DomainLoss(
        domain=name,
        on=material.name,
        held_out=held_out,
        against=against,
        difference=everything.against,
        unit=material.unit,
        units=len(ours[0].count_UG),
        by={sums.grouping.kind: groups for sums, groups in zip(ours[1:], kinds, strict=True)},  # pyright: ignore[reportReturnType, reportArgumentType]
    )


def _grouping(kind: Kind, material: Material, counts_V: Tensor | None) -> Grouping:
    ids = material.token_bytes.numel()
    if kind == "position":
        return position_grouping(material.context)
    if kind == "part":
        return part_grouping(token_texts(backend_of(material.tokenizer), ids))
    assert counts_V is not None
    # Ids that the store's vocabulary does not reach were never seen in it.
    padded_V = torch.zeros(max(ids, counts_V.numel()), dtype=counts_V.dtype)
    padded_V[: counts_V.numel()] = counts_V
    return band_grouping(padded_V) if kind == "band" else row_grouping(padded_V)


def _names(paths: Sequence[str]) -> list[str]:
    """Each path's last part, or all of it where two have the same."""
    short = [Path(path).name for path in paths]
    often = Counter(short)
    return [path if often[name] > 1 else name for name, path in zip(short, paths, strict=True)]
