"""The tiers records can live in, and which token lives in which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from retoken.data.claim import COUNTS
from retoken.errors import ConfigError
from retoken.plan import Frequencies
from retoken.serving.available import available_bytes
from retoken.serving.layout import RecordLayout
from retoken.serving.neighbours import ALONE, Neighbours, shared_memory

TIERS = ("device", "host", "disk")
"""From the fastest to the largest."""


class Tier(Protocol):
    """Keeps records, by their number in it."""

    def gather(self, slots: Tensor, /) -> Tensor:
        """Records [R, record_bytes] of slots [R]."""
        ...


class MemoryTier:
    """Records in memory: on a device, or shared by a process, its neighbours and those it forks."""

    def __init__(self, records: Tensor, elsewhere: bool = False) -> None:
        self.records = records
        self.elsewhere = elsewhere
        """Whether a neighbour fills it."""

    @classmethod
    def on_host(cls, count: int, record_bytes: int, neighbours: Neighbours = ALONE) -> MemoryTier:
        """Empty records in memory that all neighbours read; the one that leads fills it.

        Raises:
            ConfigError: the machine, or a group that limits this process, has not that much memory left.
        """
        needed = count * record_bytes

        def check() -> None:
            free = available_bytes()
            if free is not None and needed > free:
                raise ConfigError(
                    f"host tier needs {needed} bytes for {count} records; available: {free} bytes"
                )

        neighbours.first(check)
        try:
            memory = shared_memory(needed, neighbours)
        except OSError as error:
            raise ConfigError(
                f"host tier needs {needed} bytes for {count} records; refused: {error}"
            ) from None
        records = torch.frombuffer(memory, dtype=torch.uint8).view(count, record_bytes)
        return cls(records, elsewhere=not neighbours.leads)

    @classmethod
    def on_device(cls, count: int, record_bytes: int, device: torch.device) -> MemoryTier:
        """Empty records in a device's memory.

        Raises:
            ConfigError: the device has not that much left.
        """
        try:
            return cls(torch.empty(count, record_bytes, dtype=torch.uint8, device=device))
        except RuntimeError as error:
            needed = count * record_bytes
            reason = str(error).splitlines()[0]
            raise ConfigError(f"device tier needs {needed} bytes for {count} records; {reason}") from None

    def gather(self, slots: Tensor) -> Tensor:
        """Records [R, record_bytes] of slots [R], on the tier's device."""
        return self.records.index_select(0, slots.to(self.records.device))


@dataclass(frozen=True, kw_only=True)
class TierUse:
    """What a tier holds."""

    name: str
    """device, host or disk."""
    tokens: int
    """Tokens whose records are read from it."""
    bytes: int
    """What it takes: on disk all records of the file, for every token has one there."""


class Homes(NamedTuple):
    """Which tier each token's record is in, and where there."""

    names: tuple[str, ...]
    """The tiers in use, the fastest first."""
    tier_V: Tensor
    """[V] index into `names`."""
    slot_V: Tensor
    """[V] the record's number in its tier; on disk in the file. Tokens without rows share one."""
    on_disk: int
    """Records of the file, whether or not they are read from it."""

    def count(self, name: str) -> int:
        """Tokens in a tier."""
        return int((self.tier_V == self.names.index(name)).sum())

    def records(self, name: str) -> int:
        """Records in a tier."""
        if name == "disk":
            return self.on_disk
        here = self.slot_V[self.tier_V == self.names.index(name)]
        return int(here.max()) + 1 if len(here) else 0

    def uses(self, layout: RecordLayout) -> tuple[TierUse, ...]:
        """What each tier holds."""
        tokens = {name: self.count(name) for name in self.names}
        stored = {name: self.records(name) for name in self.names}
        return tuple(
            TierUse(name=name, tokens=tokens[name], bytes=stored[name] * layout.record_bytes)
            for name in self.names
        )


def check_request(tables: str, budget: Any) -> dict[str, int]:
    """The budget of each tier named.

    Raises:
        ConfigError: unknown or lower tiers, or no numbers of bytes.
    """
    if tables not in TIERS:
        raise ConfigError(f"tables is {tables!r}; accepted: {', '.join(TIERS)}")
    allowed = TIERS[: TIERS.index(tables) + 1]
    budget = {} if budget is None else budget
    if not isinstance(budget, Mapping) or not set(budget) <= set(allowed):
        raise ConfigError(
            f'budget is {budget!r}; accepted with tables="{tables}": bytes of {", ".join(allowed)}'
        )
    for name, size in budget.items():
        if type(size) is not int or size < 0:
            raise ConfigError(f"budget of {name} is {size!r}; accepted: a number of bytes from 0")
    return dict(budget)


def assign(
    layout: RecordLayout,
    tables: str,
    budget: Mapping[str, int],
    counts: Tensor | None,
    number_V: Tensor | None = None,
) -> Homes:
    """The most frequent tokens in the fastest tier that has room; the rest in `tables`.

    Args:
        layout: of the records.
        tables, budget: as checked by `check_request`.
        counts: [V] how often each token occurs.
        number_V: [V] the record of each token, as a pruned file has them; None: one of its own each.

    Raises:
        ConfigError: it does not fit, a tier has no room for one record, or no counts say which tokens are
            frequent.
    """
    above = [name for name in TIERS[: TIERS.index(tables)] if budget.get(name, 0)]
    for name in above:
        if budget[name] < layout.record_bytes:
            raise ConfigError(
                f"budget of {name} is {budget[name]} bytes; accepted: 0, or from {layout.record_bytes} on, "
                "the bytes of one record"
            )
    if above and counts is None:
        raise ConfigError("counts is None; accepted with a budget for several tiers: each token's frequency")
    records = layout.vocab_size if number_V is None else int(number_V.max()) + 1
    order = torch.arange(records)
    if above and counts is not None:
        order = _by_record(counts, number_V, records).argsort(descending=True, stable=True)
    names = (*above, tables)
    tier_R, slot_R = torch.zeros_like(order), torch.zeros_like(order)
    first = 0
    for number, name in enumerate(names):
        room = records if name == tables else budget[name] // layout.record_bytes
        taken = order[first : first + room]
        tier_R[taken] = number
        slot_R[taken] = taken if name == "disk" else torch.arange(len(taken))
        first += len(taken)
    if number_V is not None:
        tier_R, slot_R = tier_R[number_V], slot_R[number_V]
    homes = Homes(names, tier_R, slot_R, records)
    _check_fits(homes, layout, tables, budget)
    return homes


def _by_record(count_V: Tensor, number_V: Tensor | None, records: int) -> Tensor:
    """How often each record is read."""
    if number_V is None:
        return count_V
    return torch.zeros(records, dtype=count_V.dtype).index_add_(0, number_V, count_V)


def _check_fits(homes: Homes, layout: RecordLayout, tables: str, budget: Mapping[str, int]) -> None:
    use = next(use for use in homes.uses(layout) if use.name == tables)
    if tables in budget and use.bytes > budget[tables]:
        raise ConfigError(
            f"budget of {tables} is {budget[tables]} bytes; needed for {use.tokens} records left of "
            f"{layout.vocab_size}: {use.bytes} bytes ({layout.record_bytes} each)"
        )


def read_counts(counts: Any, vocab_size: int) -> Tensor | None:
    """How often each token occurs, float64 [V] that sums to 1; ids that were never counted have 0.

    Args:
        counts: an array or tensor [up to V]; a `token_counts.npy` (its first row, the training split), or the
            token store it lies in.
        vocab_size: V.

    Raises:
        DataError: another shape, negative or no counts, or not readable.
    """
    if counts is None:
        return None
    if isinstance(counts, str | Path):
        path = Path(counts)
        found = Frequencies.load(path / COUNTS if path.is_dir() else path, vocab_size)
    else:
        found = Frequencies.of_counts(np.asarray(counts), vocab_size, "given")
    return torch.from_numpy(found.probability)


def fill(tiers: Mapping[str, Any], homes: Homes, records: Iterable[tuple[int, Tensor]]) -> None:
    """Put (first token, records) of all tokens into the tiers in memory that are this process's to fill."""
    for start, block in records:
        tier, slot = homes.tier_V[start : start + len(block)], homes.slot_V[start : start + len(block)]
        for name, kept in tiers.items():
            if isinstance(kept, MemoryTier) and not kept.elsewhere:
                here = tier == homes.names.index(name)
                kept.records[slot[here].to(kept.records.device)] = block[here].to(kept.records.device)
