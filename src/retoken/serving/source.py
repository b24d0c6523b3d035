"""Placed rows as the layers see them: one gather of records a pass, each layer takes its part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retoken.errors import AttachError, CheckpointError
from retoken.nn import Fetched, Rows, TokenTable
from retoken.serving.layout import RecordLayout
from retoken.serving.reader import RowReader
from retoken.serving.tiers import Homes, Tier


class _NoBackward(torch.autograd.Function):
    """Rows as they are; whoever asks for a gradient is told that there is none."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, anchor: Tensor) -> Tensor:
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise AttachError("placed tables are for inference and give no gradients; train before place")


class PlacedFetch:
    """The records of one pass."""

    def __init__(self, source: PlacedRows, records: Tensor, positions: Tensor) -> None:
        self._source, self._records, self._positions = source, records, positions

    def arrived(self, layer: int) -> Rows:
        """The rows of a layer."""
        rows = self._source.layout.decode(self._records, layer, self._source.dtype)
        if torch.is_grad_enabled():
            rows = _NoBackward.apply(rows, torch.zeros((), requires_grad=True))
        return Rows(self._positions, rows)  # pyright: ignore


class PlacedRows:
    """Gathers the records of a pass's distinct tokens from wherever they live."""

    def __init__(
        self,
        layout: RecordLayout,
        tiers: Mapping[str, Tier],
        homes: Homes,
        dtype: torch.dtype,
        device: torch.device,
        check: RowReader | None = None,
    ) -> None:
        self.layout, self.homes, self.dtype, self.device = layout, homes, dtype, device
        self.check = check
        self.placement: Any = None
        self._tiers = [tiers[name] for name in homes.names]

    def __deepcopy__(self, memo: Any) -> PlacedRows:
        """A copy of a model reads the same records."""
        return self

    @torch.compiler.disable
    def fetch(self, ids: Tensor) -> PlacedFetch:
        """The rows of ids [B, S]."""
        if ids.numel() == 1:
            ids_R, positions = ids.reshape(1), torch.zeros_like(ids)
        else:
            ids_R, positions = torch.unique(ids, return_inverse=True)
        with torch.no_grad():
            records = self.gather(ids_R.cpu())
        return PlacedFetch(self, records, positions.to(self.device))

    def prefetch(self, ids: Tensor) -> None:
        """Nothing yet: a pass's records are gathered when it starts."""

    def gather(self, ids_R: Tensor) -> Tensor:
        """Records [R, record_bytes] of distinct ids, where the model computes."""
        if len(self._tiers) == 1:
            records = self._tiers[0].gather(self.homes.slot_V[ids_R]).to(self.device)
        else:
            records = self._cascade(ids_R)
        if self.check is not None:
            self._compare(records, ids_R)
        return records

    def _cascade(self, ids_R: Tensor) -> Tensor:
        tier_R, slot_R = self.homes.tier_V[ids_R], self.homes.slot_V[ids_R]
        size = (len(ids_R), self.layout.record_bytes)
        records = torch.empty(size, dtype=torch.uint8, device=self.device)
        for number, tier in enumerate(self._tiers):
            here = (tier_R == number).nonzero().flatten()
            if len(here):
                records[here.to(self.device)] = tier.gather(slot_R[here]).to(self.device)
        return records

    def _compare(self, records: Tensor, ids_R: Tensor) -> None:
        wanted = self.layout.encode(self.check.some(ids_R))  # pyright: ignore
        wrong = (wanted != records.cpu()).any(1)
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

    def reset_parameters(self) -> None:
        """There are none."""

    def lookup(self, ids: Tensor, fetched: Fetched | None = None) -> Tensor:
        """All rows of `ids` [...]: [..., D], or [..., E, D]."""
        return (fetched or self._placed(ids)).lookup()

    def mix(self, ids: Tensor, chosen: Tensor, weights: Tensor, fetched: Fetched | None = None) -> Tensor:
        """sum_k weights_k E_{chosen_k}[ids], [..., D] float32 (Eq. 4)."""
        return (fetched or self._placed(ids)).mix(chosen, weights)

    def _placed(self, ids: Tensor) -> Fetched:
        fetch: PlacedFetch = self.source.fetch(ids)  # pyright: ignore
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
