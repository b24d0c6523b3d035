"""place: decide where the rows of a model live (Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from retoken.attach.api import stack_of
from retoken.attach.checkpoint import FIELD, is_folded
from retoken.config import IndexedConfig, require_modulator
from retoken.errors import AttachError, CheckpointError, ConfigError
from retoken.nn import ModulatorStack, TokenTable
from retoken.ops.triton.launch import has_triton
from retoken.serving.direct import Gatherer
from retoken.serving.folding import FoldingReader
from retoken.serving.layout import RecordLayout
from retoken.serving.neighbours import ALONE, Neighbours
from retoken.serving.packed import BLOCK_BYTES, PackedFile, blocks, fingerprint, pack
from retoken.serving.pruned import PrunedReader
from retoken.serving.reader import FolderReader, RowReader, TensorReader, layout_of
from retoken.serving.shelf import Prefetch
from retoken.serving.source import PlacedRows, PlacedTable
from retoken.serving.tiers import Homes, MemoryTier, Tier, TierUse, assign, check_request, fill, read_counts


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a model's rows live."""

    rows: str
    """Row type."""
    record_bytes: int
    """Bytes of a record: what one id reads, all layers."""
    tiers: tuple[TierUse, ...]
    """The fastest first."""
    path: str | None = None
    """The packed file, where one is served."""
    gathered_by: Gatherer | None = None
    """Who gathers records on their way to a device; None: they are read where they are, or gathered there."""

    def __str__(self) -> str:
        """A line a tier."""
        head = f"rows in {self.rows}, {self.record_bytes} bytes a record"
        lines = [f"  {use.name:6}  {use.tokens:9} records  {use.bytes:15} bytes" for use in self.tiers]
        served = [f"  served from {self.path}"] if self.path else []
        gathered = [f"  gathered by the {self.gathered_by}"] if self.gathered_by else []
        return "\n".join([head, *lines, *served, *gathered])


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Where rows are asked to be; the options of `place`, checked."""

    tables: str
    budget: dict[str, int]
    path: Path | None
    rows: str | None
    counts: Any
    verify: bool | Path
    prefetch: Prefetch
    gather: Gatherer = "host"

    @classmethod
    def of(
        cls,
        tables: str,
        budget: Any,
        *,
        path: Any,
        rows: Any,
        counts: Any,
        verify: Any,
        prefetch: Any = "record",
        gather: Any = "host",
    ) -> Asked:
        """What was asked for.

        Raises:
            ConfigError: tiers, a budget or a way to prefetch or gather that are none.
        """
        if gather not in get_args(Gatherer):
            raise ConfigError(f"gather is {gather!r}; accepted: {', '.join(get_args(Gatherer))}")
        if gather == "device" and not has_triton():
            raise ConfigError(
                "gather is 'device', and Triton is not installed; accepted: 'host', or "
                "pip install 'triton>=3.5' (Linux)"
            )
        if prefetch not in get_args(Prefetch):
            raise ConfigError(f"prefetch is {prefetch!r}; accepted: {', '.join(get_args(Prefetch))}")
        return cls(
            tables=tables,
            budget=check_request(tables, budget),
            path=None if path is None else Path(path),
            rows=rows,
            counts=counts,
            verify=verify if isinstance(verify, bool) else Path(verify),
            prefetch=prefetch,
            gather=gather,
        )

    @property
    def as_they_are(self) -> bool:
        """Whether tables stay as the model has them."""
        return self.tables == "device" and self.rows is None and self.path is None and self.verify is False

    def need_path(self) -> None:
        """Refuse the disk without a file.

        Raises:
            ConfigError: no path is given.
        """
        if self.tables == "disk" and self.path is None:
            raise ConfigError(
                'path is None; accepted with tables="disk": the packed file to serve or to write'
            )

    def homes(self, layout: RecordLayout, number_V: Tensor | None = None) -> Homes:
        """Which token's record lives where.

        Args:
            layout: of the records.
            number_V: [V] the record of each token, where rows are pruned.

        Raises:
            ConfigError: they do not fit.
            DataError: counts that are none.
        """
        counts = read_counts(self.counts, layout.vocab_size)
        return assign(layout, self.tables, self.budget, counts, number_V)

    def check_folder(self, layout: RecordLayout, kept_V: Tensor | None = None) -> RowReader | None:
        """The model folder that fetched rows are compared with, if one was named.

        Args:
            layout: of the records. Where they are folded and the folder is not, its rows are folded, too.
            kept_V: [V] the tokens whose rows are there, where they are pruned.

        Raises:
            CheckpointError: the folder's rows are of other layers or another shape, or folded where these
                are not.
            ConfigError: it has nothing to fold.
        """
        if isinstance(self.verify, bool):
            return None
        reader: RowReader = FolderReader(self.verify)
        if layout.folded and not reader.folded:
            reader = FoldingReader.of_folder(self.verify)
        refuse_other(self.verify, layout_of(reader, layout.rows), layout)
        return reader if kept_V is None else PrunedReader(reader, kept_V)


class Seat(NamedTuple):
    """Whose layers are to read rows, in which type and where they compute, and who else reads them."""

    stack: ModulatorStack
    dtype: torch.dtype
    device: torch.device
    neighbours: Neighbours = ALONE


def place(
    model: PreTrainedModel,
    tables: Literal["device", "host", "disk"] = "device",
    *,
    budget: Mapping[str, int] | None = None,
    path: str | Path | None = None,
    rows: str | None = None,
    counts: Any = None,
    verify: bool | str | Path = False,
    prefetch: Prefetch = "record",
    gather: Gatherer = "host",
) -> Placement:
    """Move a model's rows to where they are to be served from; inference only (Sec. 3.3).

    Args:
        model: an attached model with plain tables, folded or not. It changes in place: tables whose rows live
            elsewhere are released.
        tables: the lowest tier in use: it takes what `budget` leaves for it.
        budget: bytes of each tier, at or above `tables`; tiers above it get the most frequent tokens.
        path: the packed file. It is served, or read, where it exists, and written first where it does not.
        rows: float32, bfloat16, int8 or float8_e4m3; None: the file's, or the one that keeps rows as is.
        counts: token frequencies: an array [up to V], a token store or its `token_counts.npy`. Rows of hashed
            bigrams come after those of tokens; where there are no others, an array of how often each is read.
        prefetch: what is asked of the disk ahead: "record", all rows of a token as soon as its id is known;
            "chosen", those that a MoRT router has chosen when it has, but "record" where rows are summed;
            "none", each row when it is read.
        gather: who gathers the records of a pass for a model on a GPU: "host", or "device", which reads them
            out of host memory itself where all of them are there and the system lets it; else the host does.
        verify: recompute every fetched row and compare: True keeps the tables for it, a model folder is read.

    Returns:
        What lives where; also `model.retoken.source.placement`.

    Raises:
        AttachError: nothing is attached, or tables are divided or placed already.
        CheckpointError: the file is truncated, foreign, changed, or of another model.
        ConfigError: a request that is not understood, or does not fit, with the numbers.
        DataError: counts that are none.
    """
    stack = stack_of(model)
    ways: dict[str, Any] = {"counts": counts, "verify": verify, "prefetch": prefetch, "gather": gather}
    asked = Asked.of(tables, budget, path=path, rows=rows, **ways)
    reader = _reader(model, stack)
    if asked.as_they_are:
        return _resident(reader, asked.budget)
    asked.need_path()
    first = next(iter(reader.tables.values()))
    return house(Seat(stack, first.dtype, first.device), reader, asked)


def house(seat: Seat, reader: RowReader, asked: Asked) -> Placement:
    """Put the rows of a reader where they are asked for, block by block, and let a model read them there.

    Raises:
        As `place`.
    """
    layout = None if asked.path is not None and asked.path.exists() else layout_of(reader, asked.rows)
    if layout is not None:
        _homes(seat, layout, asked)  # refused before anything is written
    packed = None if asked.path is None else _packed(reader, asked.path, asked.rows, seat.neighbours)
    layout = packed.layout if packed is not None else layout
    assert layout is not None
    stored = blocks(reader, layout) if packed is None else _stored(packed)
    check = reader if asked.verify is True else asked.check_folder(layout)
    return _move(seat, layout, _homes(seat, layout, asked), packed, stored, check, asked)


def serve(seat: Seat, packed: PackedFile, asked: Asked) -> Placement:
    """Let a model read its rows out of a packed file, or out of memory that is filled from it."""
    homes = _homes(seat, packed.layout, asked, packed.number_V)
    stored, check = _stored(packed), asked.check_folder(packed.layout, packed.kept)
    return _move(seat, packed.layout, homes, packed, stored, check, asked)


def _homes(seat: Seat, layout: RecordLayout, asked: Asked, number_V: Tensor | None = None) -> Homes:
    """`Asked.homes`, of counts that say something of these rows."""
    config, counts = seat.stack.config, asked.counts
    by_bigram = isinstance(config, IndexedConfig) and config.index == "bigram"
    if (
        by_bigram
        and counts is not None
        and (isinstance(counts, str | Path) or len(counts) != layout.vocab_size)
    ):
        raise ConfigError(
            "counts are of tokens, and rows are looked up by hashed bigrams; accepted: an array of how often "
            f"each of the {layout.vocab_size} rows is read"
        )
    return asked.homes(layout, number_V)


def _reader(model: PreTrainedModel, stack: ModulatorStack) -> TensorReader:
    require_modulator(stack.config, "place")
    parts = {int(layer): module.table for layer, module in stack.layers.items()}
    for layer, table in parts.items():
        if type(table) is not TokenTable:
            kind = type(table).__name__
            raise AttachError(f"layer {layer} has a {kind}; place takes plain tables, once")
    weights: dict[int, Tensor] = {i: table.weight.detach() for i, table in parts.items()}  # pyright: ignore
    return TensorReader(weights, is_folded(getattr(model.config, FIELD)))


def _resident(reader: TensorReader, budget: Mapping[str, int]) -> Placement:
    """The tables as they are."""
    total = sum(table.nbytes for table in reader.tables.values())
    tokens = reader.shape()[0]
    if total > budget.get("device", total):
        raise ConfigError(
            f"budget of device is {budget['device']} bytes; needed for {tokens} records: {total} bytes"
        )
    first = next(iter(reader.tables.values()))
    use = TierUse(name="device", tokens=tokens, bytes=total)
    kind = str(first.dtype).removeprefix("torch.")
    return Placement(rows=kind, record_bytes=total // tokens, tiers=(use,))


def _packed(reader: RowReader, path: Path, rows: str | None, neighbours: Neighbours) -> PackedFile:
    """The packed file at `path`, of this model's rows."""
    neighbours.first(lambda: None if path.exists() else pack(reader, path, rows))
    packed = PackedFile(path)
    if packed.number_V is not None:
        raise CheckpointError(
            f"{path}: holds the rows of some tokens only; accepted: retoken.load of the folder it lies in"
        )
    own = layout_of(reader, packed.layout.rows)
    if rows is not None and rows != packed.layout.rows:
        raise CheckpointError(f"{path}: rows are {packed.layout.rows}; asked for: {rows}")
    refuse_other(path, packed.layout, own)
    if fingerprint(own, lambda ids: own.encode(reader.some(ids))) != packed.fingerprint:
        raise CheckpointError(f"{path}: of another model: its rows are not this model's")
    return packed


def refuse_other(path: Path, found: RecordLayout, wanted: RecordLayout) -> None:
    """Refuse records laid out in another way.

    Raises:
        CheckpointError: they are.
    """
    ours, theirs = wanted.to_dict(), found.to_dict()
    differs = {name: value for name, value in theirs.items() if ours[name] != value}
    if differs:
        accepted = {name: ours[name] for name in differs}
        raise CheckpointError(f"{path}: of another model: {differs}; accepted: {accepted}")


def _move(
    seat: Seat,
    layout: RecordLayout,
    homes: Homes,
    packed: PackedFile | None,
    stored: Iterable[tuple[int, Tensor]],
    check: RowReader | None,
    asked: Asked,
) -> Placement:
    """Fill the tiers, then let the layers read from them and the tables go."""
    tiers = _build_tiers(layout, homes, packed, seat)
    _fill(tiers, homes, stored, seat.neighbours)
    source = PlacedRows(layout, tiers, homes, seat.dtype, seat.device, check, asked.prefetch, asked.gather)
    served = str(packed.path) if packed is not None and "disk" in homes.names else None
    source.placement = Placement(
        rows=layout.rows,
        record_bytes=layout.record_bytes,
        tiers=homes.uses(layout),
        path=served,
        gathered_by=source.stage.gathered_by if source.stage is not None else None,
    )
    for layer, module in seat.stack.layers.items():
        module.table = PlacedTable(int(layer), source)
    seat.stack.source = source  # pyright: ignore
    return source.placement


def _build_tiers(
    layout: RecordLayout, homes: Homes, packed: PackedFile | None, seat: Seat
) -> dict[str, Tier]:
    tiers: dict[str, Tier] = {}
    for name in homes.names:
        if name == "disk":
            assert packed is not None
            tiers[name] = packed
        elif name == "host":
            tiers[name] = MemoryTier.on_host(
                max(homes.records(name), 1), layout.record_bytes, seat.neighbours
            )
        else:
            tiers[name] = MemoryTier.on_device(homes.records(name), layout.record_bytes, seat.device)
    return tiers


def _fill(
    tiers: dict[str, Tier], homes: Homes, stored: Iterable[tuple[int, Tensor]], neighbours: Neighbours
) -> None:
    """Fill the tiers in memory; nobody reads what they share before it is all there."""
    if homes.names == ("disk",):
        return
    neighbours.first(lambda: fill(tiers, homes, stored))
    if not neighbours.leads and "device" in homes.names:
        fill(tiers, homes, stored)


def _stored(packed: PackedFile) -> Iterator[tuple[int, Tensor]]:
    step = max(BLOCK_BYTES // packed.layout.record_bytes, 1)
    for start in range(0, packed.layout.vocab_size, step):
        yield start, packed.of_tokens(torch.arange(start, min(start + step, packed.layout.vocab_size)))
