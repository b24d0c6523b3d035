"""The seam: whoever needs rows asks a table, and never learns where they live."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retoken.ops import mix_rows
from retoken.ops.fused import Near, near_table


class Fetched(Protocol):
    """What a layer gets of the rows fetched for one forward pass."""

    def lookup(self) -> Tensor:
        """All rows of the pass's tokens: [B, S, D], or [B, S, E, D]."""
        ...

    def mix(self, chosen: Tensor, weights: Tensor) -> Tensor:
        """sum_k weights_k E_{chosen_k}, [B, S, D] float32, for [B, S, K] both (Eq. 4)."""
        ...

    def near(self) -> Near | None:
        """Where the rows lie, if a kernel may read them there; None: they have to be fetched or trained."""
        ...

    def resident(self) -> Rows | None:
        """One row a token, for a kernel to gather; None: there is only `lookup`."""
        ...

    def resident_for(self, chosen: Tensor) -> tuple[Rows, Tensor] | None:
        """Rows [R, E, D], and for chosen [B, S, K] which of their E [B, S, K]; None: there is only `mix`."""
        ...


class Rows(NamedTuple):
    """Rows at hand, and which of them each token has: the resident form of `Fetched`."""

    positions: Tensor
    """[B, S] -> 0..R-1."""
    rows: Tensor
    """[R, D] or [R, E, D], on the device that computes."""

    def lookup(self) -> Tensor:
        """[..., D], or [..., E, D], for positions [...]."""
        if self.rows.dim() == 2:
            return F.embedding(self.positions, self.rows)
        return self.rows[self.positions]

    def mix(self, chosen: Tensor, weights: Tensor) -> Tensor:
        """[..., D] for positions [...], the others [..., K] (Eq. 4)."""
        count, per_token, width = self.rows.shape
        device = self.rows.device
        index = self.positions.unsqueeze(-1) * per_token + chosen.to(device)
        return mix_rows(self.rows.view(count * per_token, width), index, weights.to(device))

    def near(self) -> Near | None:
        """Where they lie, on a CPU."""
        return near_table(self.rows, self.positions)

    def resident(self) -> Rows:
        """These."""
        return self

    def resident_for(self, chosen: Tensor) -> tuple[Rows, Tensor]:
        """These, and the same choice."""
        return self, chosen


TableFactory = Callable[[tuple[int, ...], float, torch.device | None, torch.dtype | None], "TokenTable"]
"""Makes the table of one layer from its shape, the std of its start values, device and type."""


class TokenTable(nn.Module):
    """E^l: the rows of every token id in one layer, resident on one device.

    `weight` is [V, D] with one row a token, [V, E, D] with E of them, contiguous per token.
    """

    prepared: Any = None
    """What its modulator's kernels have of it (`Prepared`), once there was a pass for them."""

    def __init__(
        self, shape: tuple[int, ...], init_std: float, device: torch.device | None, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.init_std = init_std
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Rows from N(0, init_std)."""
        nn.init.normal_(self.weight, std=self.init_std)

    @property
    def vocab_size(self) -> int:
        """V, the number of token ids that have rows."""
        return self.weight.shape[0]

    @property
    def width(self) -> int:
        """D, the numbers of a row."""
        return self.weight.shape[-1]

    def lookup(self, ids: Tensor, fetched: Fetched | None = None) -> Tensor:
        """All rows of `ids` [...]: [..., D], or [..., E, D]; out of `fetched` where they were fetched."""
        return self.rows_of(ids, fetched).lookup()

    def mix(self, ids: Tensor, chosen: Tensor, weights: Tensor, fetched: Fetched | None = None) -> Tensor:
        """sum_k weights_k E_{chosen_k}[ids], [..., D] float32, for ids [...], the others [..., K] (Eq. 4)."""
        return self.rows_of(ids, fetched).mix(chosen, weights)

    def rows_of(self, ids: Tensor, fetched: Fetched | None = None) -> Fetched:
        """The rows of ids [...]: what was fetched, or this table and the ids."""
        if fetched is not None:
            return fetched
        weight = self.weight
        return Rows(ids if ids.device == weight.device else ids.to(weight.device), weight)

    @torch.no_grad()
    def resize(self, vocab_size: int) -> None:
        """Keep the first `vocab_size` tokens' rows; new tokens get zero rows, which modulate nothing."""
        old = self.weight
        if old.shape[0] == vocab_size:
            return
        new = old.new_zeros((vocab_size, *old.shape[1:]))
        kept = min(vocab_size, old.shape[0])
        new[:kept] = old[:kept]
        self.weight = nn.Parameter(new, requires_grad=old.requires_grad)

    def extra_repr(self) -> str:
        """Shape and type, for print(model)."""
        return f"{tuple(self.weight.shape)}, {self.weight.dtype}"


class Summed(NamedTuple):
    """Several rows a position, [..., H] of them, that are used as their sum."""

    rows: Fetched
    shape: torch.Size
    """[..., H]."""

    def lookup(self) -> Tensor:
        """Their sums, [..., D], or [..., E, D]."""
        return self.rows.lookup().sum(len(self.shape) - 1)

    def mix(self, chosen: Tensor, weights: Tensor) -> Tensor:
        """The sum over H of what each gives, [..., D] float32: Eq. 4 is linear in rows. Both [..., K]."""
        each = (x.unsqueeze(-2).expand(*self.shape, x.shape[-1]) for x in (chosen, weights))
        return self.rows.mix(*each).sum(-2)

    def near(self) -> Near | None:
        """Where they lie, all of a position's."""
        near = self.rows.near()
        return near and near._replace(heads=self.shape[-1])

    def resident(self) -> None:
        """There is only `lookup`."""

    def resident_for(self, chosen: Tensor) -> None:
        """There is only `mix`."""
