"""Held-out loss of each kind of token, from sums kept by document, so that two checkpoints can be paired."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retoken.eval.groups import Grouping
from retoken.eval.material import UnitsOf
from retoken.eval.pairing import GroupDifference, differences
from retoken.train.world import World

Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GroupSums:
    """Sums by unit (a document, or a window where documents are not known) and group of one kind."""

    grouping: Grouping
    nll_UG: Sums
    """Nats."""
    count_UG: Sums
    """Predicted tokens."""
    bytes_UG: Sums
    """UTF-8 bytes they stand for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupLoss:
    """How well the tokens of one group are predicted."""

    group: str
    number: int
    """Its place among the groups of its kind; the same in every domain."""
    tokens: int
    """Predicted tokens of the group."""
    share: float
    """Of all predicted tokens."""
    val_loss: float
    """Nats per token."""
    val_bits_per_byte: float | None
    """Bits per byte of the group's own text; None where it has none."""
    against: GroupDifference | None = None
    """The same tokens by the other checkpoint."""

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy; without another checkpoint, without `against`."""
        found = asdict(self)
        return found if self.against else {key: value for key, value in found.items() if key != "against"}


class Observed:
    """What `retoken.train.evaluate.evaluate` tells of each batch, summed by unit and group.

    Args:
        groupings: How tokens are divided.
        units: Which unit each predicted token is of.
        unit_count: Units there are.
        token_bytes: UTF-8 bytes of each token id [V].
    """

    def __init__(
        self, groupings: Sequence[Grouping], units: UnitsOf, unit_count: int, token_bytes: Tensor
    ) -> None:
        self._groupings = groupings
        self._units = units
        self._unit_count = unit_count
        self._bytes_V = token_bytes.double()
        self._windows = 0
        self._sums = [
            torch.zeros(3, unit_count * len(each.labels), dtype=torch.float64) for each in groupings
        ]

    def __call__(self, windows: Tensor, nll_BS: Tensor | None) -> None:
        """One batch; None: another process adds it."""
        windows = windows.cpu()
        if nll_BS is not None:
            units_BS = self._units(self._windows, windows)
            bytes_BS = self._bytes_V[windows[:, 1:]]
            values = torch.stack([nll_BS, torch.ones_like(nll_BS), bytes_BS]).flatten(1)
            for grouping, sums in zip(self._groupings, self._sums, strict=True):
                cell = units_BS * len(grouping.labels) + grouping.assign(windows)
                sums.index_add_(1, cell.flatten(), values)
        self._windows += len(windows)

    def summed(self, world: World) -> list[GroupSums]:
        """Over all processes; units that no token fell into are left out."""
        found = []
        for grouping, sums in zip(self._groupings, self._sums, strict=True):
            whole = world.sum(sums).cpu().numpy().reshape(3, self._unit_count, len(grouping.labels))
            nll, count, size = whole[:, whole[1].sum(1) > 0]
            found.append(GroupSums(grouping=grouping, nll_UG=nll, count_UG=count, bytes_UG=size))
        return found


def losses(ours: GroupSums, theirs: GroupSums | None = None) -> list[GroupLoss]:
    """Loss of every group that a token fell into, and the other checkpoint's difference to it."""
    nll, count, size = (each.sum(0) for each in (ours.nll_UG, ours.count_UG, ours.bytes_UG))
    pairs = differences(ours.nll_UG, theirs.nll_UG, ours.count_UG) if theirs else [None] * count.size
    return [
        GroupLoss(
            group=label,
            number=place,
            tokens=int(count[place]),
            share=float(count[place] / count.sum()),
            val_loss=float(nll[place] / count[place]),
            val_bits_per_byte=float(nll[place] / math.log(2) / size[place]) if size[place] else None,
            against=pairs[place],
        )
        for place, label in enumerate(ours.grouping.labels)
        if count[place]
    ]
