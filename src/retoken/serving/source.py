"""Placed rows as the layers see them: read where each token's record lies, by the layer that needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from retoken.errors import AttachError, CheckpointError
from retoken.nn import Fetched, Rows, TokenTable
from retoken.ops.fused import Near, Places
from retoken.serving.direct import Gatherer, device_stage
from retoken.serving.layout import RecordLayout
from retoken.serving.packed import BLOCK_BYTES, PackedFile
from retoken.serving.reader import RowReader
from retoken.serving.shelf import Prefetch, Shelf, Wanted
from retoken.serving.stage import Buffers, Stage
from retoken.serving.stored import StoredRows
from retoken.serving.tiers import Homes, MemoryTier, Tier

F = TypeVar("F", bound=Callable[..., Any])


class _NoBackward(torch.autograd.Function):
    """Rows as they are; whoever asks for a gradient is told that there is none."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, anchor: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise AttachError("placed tables are for inference and give no gradients; train before place")


class PlacedLayer(NamedTuple):
    """What a layer gets: its part of the records of one pass."""

    fetch: PlacedFetch
    layer: int

    def lookup(self) -> Tensor:
        """All rows of the pass's tokens: [B, S, D], or [B, S, E, D]."""
        return self._rows().lookup()

    def mix(self, chosen: Tensor, weights: Tensor) -> Tensor:
        """[B, S, D] float32, for [B, S, K] both (Eq. 4)."""
        return self._rows().mix(chosen, weights)

    def near(self) -> Near | None:
        """Where they lie, on a CPU."""
        return self.fetch.near(self.layer)

    def resident(self) -> Rows:
        """Each token's row, arrived."""
        return self._rows()

    def resident_for(self, chosen: Tensor) -> tuple[Rows, Tensor]:
        """Each token's rows, arrived, and the same choice."""
        return self._rows(), chosen

    def _rows(self) -> Rows:
        rows, positions = self.fetch.copied(self.layer)
        if torch.is_grad_enabled():
            rows = _NoBackward.apply(rows, torch.zeros((), requires_grad=True))
        return Rows(positions, rows)  # pyright: ignore


def _untraced(function: F) -> F:
    """Let a compiler call it as it is: it asks for records, or reads a file."""
    return torch.compiler.disable(function)  # pyright: ignore


class PlacedFetch:
    """The records of one pass."""

    def __init__(self, source: PlacedRows, ids: Tensor) -> None:
        self.source, self.ids = source, ids
        self._records: tuple[Tensor, Tensor] | None = None
        self._staged: Buffers | None = None
        self._wanted: Wanted | None = None
        if source.shelf is not None:
            self._wanted = source.shelf.wanted(ids)
            source.shelf.begin(self._wanted)
        elif source.stage is not None:
            self._staged = source.stage.fetch(ids)

    def arrived(self, layer: int) -> PlacedLayer:
        """The rows of a layer. With the last layer's all records of the pass are checked."""
        if self._wanted is not None:
            self._read(layer)
        return PlacedLayer(self, layer)

    @_untraced
    def _read(self, layer: int) -> None:
        self.source.shelf.read(self._wanted, layer)  # pyright: ignore

    def at_hand(self, layer: int) -> PlacedLayer | None:
        """The rows of a layer; None where it has to wait for them, or checks records."""
        if self._wanted is None or self.source.shelf.checks_with(self._wanted, layer):  # pyright: ignore
            return None
        return PlacedLayer(self, layer)

    def places(self) -> Places | None:
        """The records of its positions; None: they come in copies."""
        return None if self._wanted is None else Places.of(self._wanted.slots)

    def check(self) -> None:
        """Check what comes from the file now: a layer on its own may be the only one that reads."""
        if self._wanted is not None:
            self.source.shelf.check(self._wanted)  # pyright: ignore

    def near(self, layer: int) -> Near | None:
        """Where a layer's rows lie."""
        if self._wanted is None:
            return None
        return self.source.shelf.near(self._wanted, layer)  # pyright: ignore

    def copied(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's rows of each distinct token, and which each position has, where the model computes."""
        if self._staged is not None:
            return self.source.stage.rows(self._staged, layer, self.source.dtype)  # pyright: ignore
        if self._records is None:
            self._records = self.source.copy(self.ids)
        records, positions = self._records
        return self.source.layout.decode(records, layer, self.source.dtype), positions


def _is_traced() -> bool:
    """Whether a compiler reads a pass without gradients: with them, rows have to say that they give none."""
    return torch.compiler.is_compiling() and not torch.is_grad_enabled()


class PlacedRows:
    """Knows where the records of a pass's tokens are, wherever they live."""

    def __init__(
        self,
        layout: RecordLayout,
        tiers: Mapping[str, Tier],
        homes: Homes,
        dtype: torch.dtype,
        device: torch.device,
        check: RowReader | None = None,
        prefetch: Prefetch = "record",
        gather: Gatherer = "host",
    ) -> None:
        self.layout, self.homes, self.dtype, self.device = layout, homes, dtype, device
        self.check = check
        self.placement: Any = None
        self._tiers = [tiers[name] for name in homes.names]
        self.shelf: Shelf | None = None
        self.stage: Stage | None = None
        if device.type == "cpu":
            self.shelf = Shelf(layout, homes, self._tiers, prefetch)
        elif "device" not in homes.names:
            direct = gather == "device" and homes.names == ("host",) and not self.shared
            found = device_stage(layout, tiers["host"].records, device) if direct else None  # pyright: ignore
            self.stage = found or Stage(layout, self._on_host, device)
        in_memory = isinstance(self._tiers[0], MemoryTier)
        views = {layer: self.views(layer) for layer in layout.layers} if in_memory else {}
        self.traced = {layer: view for layer, view in views.items() if view is not None}
        """What a compiler reads itself: by layer, where all records are in host memory; else {}."""

    def __deepcopy__(self, memo: Any) -> PlacedRows:
        """A copy of a model reads the same records."""
        return self

    def fetch(self, ids: Tensor) -> PlacedFetch | None:
        """The rows of ids [B, S]; None where a compiler reads them itself, layer by layer."""
        return None if self.traced and _is_traced() else self.fetch_now(ids)

    @_untraced
    def fetch_now(self, ids: Tensor) -> PlacedFetch:
        """The rows of ids [B, S], whoever asks."""
        if self.check is not None:
            self._compare(ids)
        return PlacedFetch(self, ids)

    @_untraced
    def prefetch(self, ids: Tensor) -> None:
        """Ask for the records of ids [B, S] of a pass to come."""
        if self.shelf is not None:
            self.shelf.begin(self.shelf.wanted(ids))
        elif self.stage is not None:
            self.stage.prefetch(ids)

    def views(self, layer: int) -> tuple[Tensor, Tensor | None] | None:
        """A layer's part of all records, as `RecordLayout.views`; None: in pieces, or to be compared."""
        return None if self.shelf is None or self.check is not None else self.shelf.views(layer)

    @_untraced
    @torch.no_grad()
    def copy(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Records [R, record_bytes] of the distinct ids of [B, S], and positions [B, S] in them."""
        ids_R, positions = torch.unique(ids, return_inverse=True)
        return self.gather(ids_R.cpu()), positions.to(self.device)

    def gather(self, ids_R: Tensor) -> Tensor:
        """Records [R, record_bytes] of ids, where the model computes."""
        return self._gather(ids_R, self.device)

    def _on_host(self, ids_R: Tensor) -> Tensor:
        return self._gather(ids_R, torch.device("cpu"))

    def _gather(self, ids_R: Tensor, device: torch.device) -> Tensor:
        if len(self._tiers) == 1:
            return self._tiers[0].gather(self.homes.slot_V[ids_R]).to(device)
        tier_R, slot_R = self.homes.tier_V[ids_R], self.homes.slot_V[ids_R]
        size = (len(ids_R), self.layout.record_bytes)
        records = torch.empty(size, dtype=torch.uint8, device=device)
        for number, tier in enumerate(self._tiers):
            here = (tier_R == number).nonzero().flatten()
            if len(here):
                records[here.to(device)] = tier.gather(slot_R[here]).to(device)
        return records

    @property
    def packed(self) -> PackedFile | None:
        """The file that rows are read from, if any are."""
        return next((tier for tier in self._tiers if isinstance(tier, PackedFile)), None)

    @property
    def shared(self) -> bool:
        """Whether tokens share a record, as those without rows do."""
        return sum(map(self.homes.records, self.homes.names)) < self.layout.vocab_size

    @property
    def replaceable(self) -> bool:
        """Whether all records are in memory, each of one token, and not compared with others."""
        in_memory = all(isinstance(tier, MemoryTier) for tier in self._tiers)
        return self.check is None and in_memory and not self.shared

    @torch.no_grad()
    def replace(self, layer: int, rows: Tensor) -> None:
        """Put other rows [V, D] or [V, E, D] of a layer where its rows are served from, block by block.

        Where a neighbour fills a tier it is the neighbour that changes it.

        Raises:
            CheckpointError: records lie in a file, fetched rows are compared with others, or another shape.
        """
        own = (self.layout.rows_per_token,) if self.layout.rows_per_token else ()
        shape = (self.layout.vocab_size, *own, self.layout.width)
        if not self.replaceable:
            raise CheckpointError(
                f"rows of layer {layer} are read from a file, or compared with one, or pruned, and cannot be "
                'replaced; accepted: tables="host" or "device" of all rows, without verify'
            )
        if tuple(rows.shape) != shape:
            raise CheckpointError(f"rows of layer {layer} are {list(rows.shape)}; accepted: {list(shape)}")
        if self.stage is not None:
            self.stage.forget()
        step = max(BLOCK_BYTES // self.layout.part_bytes, 1)
        for start in range(0, len(rows), step):
            self._replace(
                layer, torch.arange(start, min(start + step, len(rows))), rows[start : start + step]
            )

    def _replace(self, layer: int, ids_R: Tensor, rows: Tensor) -> None:
        pieces = self.layout.pieces(layer, rows)
        for number, tier in enumerate(self._tiers):
            here = self.homes.tier_V[ids_R] == number
            if tier.elsewhere or not here.any():  # pyright: ignore
                continue
            records: Tensor = tier.records  # pyright: ignore
            slots = self.homes.slot_V[ids_R][here].to(records.device)
            for start, piece in pieces:
                records[slots, start : start + piece.shape[1]] = piece[here].to(records.device)

    def _compare(self, ids: Tensor) -> None:
        ids_R = ids.unique().cpu()
        wanted = self.layout.encode(self.check.some(ids_R))  # pyright: ignore
        wrong = (wanted != self.gather(ids_R).cpu()).any(1)
        if wrong.any():
            token = int(ids_R[wrong][0])
            raise CheckpointError(f"placed rows of token {token} differ from those they were made of")


class PlacedTable(TokenTable):
    """Stands where a layer's table was. It holds nothing: rows come through the source."""

    def __init__(self, layer: int, source: PlacedRows) -> None:
        nn.Module.__init__(self)
        self.layer, self.source = layer, source

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.source.layout.vocab_size

    @property
    def width(self) -> int:
        """D."""
        return self.source.layout.width

    def reset_parameters(self) -> None:
        """There are none."""

    def rows_of(self, ids: Tensor, fetched: Fetched | None = None) -> Fetched:
        """The rows of ids [...]."""
        if fetched is not None:
            return fetched
        if (traced := self.source.traced) and _is_traced():
            return StoredRows(ids, *traced[self.layer])
        fetch = self.source.fetch_now(ids)
        fetch.check()
        return fetch.arrived(self.layer)

    def resize(self, vocab_size: int) -> None:
        """Refused where it would change anything.

        Raises:
            AttachError: records are read only.
        """
        if vocab_size != self.vocab_size:
            raise AttachError(
                f"placed tables have {self.vocab_size} tokens not {vocab_size}; resize before place"
            )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise CheckpointError("placed tables are not in the model's state; save the model before place")

    def extra_repr(self) -> str:
        """Row type and size, for print(model)."""
        return f"{self.vocab_size} tokens, placed as {self.source.layout.rows}"
