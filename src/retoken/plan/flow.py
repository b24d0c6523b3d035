"""What travels between ranks, by phase: summed per rank, or as a matrix of links."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np


class Way(Enum):
    """Which way the bytes of a phase travel."""

    ASK = "from a rank to the owners of its emp group"
    ANSWER = "from owners to the ranks that asked"
    REPLICA = "from an owner to the owners of the same part in the other emp groups"


class Lane(NamedTuple):
    """One phase of the exchange, over all layers."""

    bytes: np.ndarray
    """[N, G]: between rank and owner g of its group; REPLICA: [P, G], from owner g of group p to each other
    group. A first axis of 1 stands for ranks, or groups, that are all alike."""
    way: Way
    collectives: int = 1
    """How often the phase happens: once, or once a layer."""
    backward: bool = False
    """In the backward pass."""


class Flow(NamedTuple):
    """Bytes per rank, [N], or [G] for the ranks of any group where all are alike."""

    sent: np.ndarray
    received: np.ndarray
    local: np.ndarray
    """What a rank has for itself: no link carries it."""

    @property
    def busiest(self) -> float:
        """The larger of sent and received on the rank that has most of it: links carry both ways at once."""
        return float(max(self.sent.max(), self.received.max()))


@dataclass(frozen=True, slots=True)
class Traffic:
    """Everything that travels in one micro-batch, or in several."""

    ranks: int
    """N."""
    group: int
    """G, ranks of an emp group; consecutive."""
    lanes: dict[str, Lane]
    """By phase; the phases' names and bytes are those of `retoken.plan.traffic`."""

    def flow(self, *phases: str) -> Flow:
        """Bytes per rank of some phases, or of all."""
        flows = [_flow(self.lanes[name], self.ranks, self.group) for name in phases or self.lanes]
        return Flow(*(np.sum(column, axis=0) for column in zip(*flows, strict=True)))

    def flow_of(self, *, backward: bool) -> Flow:
        """Bytes per rank of one of the two passes."""
        names = [name for name, lane in self.lanes.items() if lane.backward == backward]
        nothing = np.zeros(1)
        return self.flow(*names) if names else Flow(nothing, nothing, nothing)

    def messages(self, *phases: str) -> int:
        """Messages a rank sends to others: G - 1 a collective within a group, P - 1 between replicas."""
        lanes = [self.lanes[name] for name in phases or self.lanes]
        return sum(lane.collectives * self._peers(lane) for lane in lanes)

    def _peers(self, lane: Lane) -> int:
        return (self.ranks // self.group if lane.way is Way.REPLICA else self.group) - 1

    def matrix(self, phase: str) -> np.ndarray:
        """[N, N]: bytes from rank (row) to rank (column); what a rank has for itself is on the diagonal."""
        lane, size = self.lanes[phase], self.group
        count = self.ranks if lane.way is not Way.REPLICA else self.ranks // size
        full = np.broadcast_to(lane.bytes, (count, size))
        if lane.way is Way.REPLICA:
            return _replica_matrix(full)
        out = np.zeros((self.ranks, self.ranks), full.dtype)
        for rank in range(self.ranks):
            start = rank // size * size
            out[rank, start : start + size] = full[rank]
        return out.T if lane.way is Way.ANSWER else out

    def times(self, *, forward: int = 1, backward: int = 1) -> Traffic:
        """With the phases of each pass repeated."""
        factor = {False: forward, True: backward}
        lanes = {
            name: lane._replace(
                bytes=lane.bytes * factor[lane.backward], collectives=lane.collectives * factor[lane.backward]
            )
            for name, lane in self.lanes.items()
        }
        return Traffic(self.ranks, self.group, lanes)

    def __add__(self, other: Traffic) -> Traffic:
        """Of two micro-batches of one exchange."""
        assert (self.ranks, self.group, set(self.lanes)) == (other.ranks, other.group, set(other.lanes))
        lanes = {
            name: lane._replace(
                bytes=lane.bytes + other.lanes[name].bytes,
                collectives=lane.collectives + other.lanes[name].collectives,
            )
            for name, lane in self.lanes.items()
        }
        return Traffic(self.ranks, self.group, lanes)


def _flow(lane: Lane, ranks: int, size: int) -> Flow:
    if lane.way is Way.REPLICA:
        return _replica_flow(lane.bytes, ranks // size)
    if len(lane.bytes) == 1:
        asked, answered = _alike(lane.bytes[0], size)
    else:
        asked, answered = _measured(lane.bytes.reshape(-1, size, size))
    local = (
        lane.bytes[0] if len(lane.bytes) == 1 else np.diagonal(_square(lane.bytes, size), 0, 1, 2).reshape(-1)
    )
    return Flow(asked, answered, local) if lane.way is Way.ASK else Flow(answered, asked, local)


def _square(values: np.ndarray, size: int) -> np.ndarray:
    return values.reshape(-1, size, size)


def _alike(per_owner: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """[G] bytes to owners from every rank: (what each rank exchanges as asker, as owner)."""
    return per_owner.sum() - per_owner, (size - 1) * per_owner


def _measured(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[P, asker, owner] bytes: (what each rank exchanges as asker, as owner)."""
    own = np.diagonal(groups, 0, 1, 2)
    return (groups.sum(2) - own).reshape(-1), (groups.sum(1) - own).reshape(-1)


def _replica_flow(to_each: np.ndarray, groups: int) -> Flow:
    """[P, G] bytes that an owner sends each other group."""
    total = to_each.sum(0) if len(to_each) > 1 else to_each[0] * groups
    return Flow(((groups - 1) * to_each).reshape(-1), (total - to_each).reshape(-1), to_each.reshape(-1))


def _replica_matrix(to_each: np.ndarray) -> np.ndarray:
    groups, size = to_each.shape
    out = np.zeros((groups, size, groups, size), to_each.dtype)
    part = np.arange(size)
    for group in range(groups):
        out[group, part, :, part] = to_each[group][:, None]
    return out.reshape(groups * size, groups * size)
