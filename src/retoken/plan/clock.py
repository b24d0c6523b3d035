"""From a step's work to seconds."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from retoken.plan.shape import require
from retoken.plan.work import Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a rank achieves: constants of the time model, given or fitted."""

    flops: float
    """FLOP/s achieved on the backbone."""
    memory_bandwidth: float
    """Bytes/s of the memory that the tables are in use from."""
    link_bandwidth: float
    """Bytes/s of a rank's link, each way."""
    latency: float
    """Seconds per message."""
    host_bandwidth: float
    """Bytes/s between host memory and the device."""
    overlap: float = 1.0
    """Share of the compute time in which messages and copies travel as well: 0 where one core does both."""
    fixed: float = 0.0
    """Seconds of a step that depend on nothing."""

    def __post_init__(self) -> None:
        for name in ("flops", "memory_bandwidth", "link_bandwidth", "host_bandwidth"):
            value = getattr(self, name)
            require(math.isfinite(value) and value > 0, name, value, "a number above 0")
        for name in ("latency", "fixed"):
            value = getattr(self, name)
            require(math.isfinite(value) and value >= 0, name, value, "a number from 0")
        require(0 <= self.overlap <= 1, "overlap", self.overlap, "a number from 0 to 1")

    @classmethod
    def constants(cls) -> tuple[str, ...]:
        """The names of its constants."""
        return tuple(field.name for field in fields(cls))


@dataclass(frozen=True, kw_only=True, slots=True)
class Time:
    """Seconds of a step, by what they are spent on."""

    compute: float
    """The backbone."""
    tables: float
    """Lookups, gradients and updates of rows."""
    waited: float
    """Exchange that nothing hides."""
    forward_exposed: float
    """What the forward pass does not hide of its exchange and host copies."""
    backward_exposed: float
    """What the backward pass does not hide of its own."""
    fixed: float
    """Depends on nothing."""

    @property
    def total(self) -> float:
        """The step."""
        return sum(getattr(self, field.name) for field in fields(self))


def step_time(work: Work, machine: Machine) -> Time:
    """Seconds of a step.

    A message costs a latency, a byte its share of the link. What travels beside a pass costs only what
    exceeds the part of that pass's compute that can hide it: window * overlap * compute. Host copies go half
    with each pass. Ranks that share a core or a device wait for each other in everything but the fixed part.
    """
    forward, backward = work.forward_flops / machine.flops, work.backward_flops / machine.flops
    host = work.host_bytes / machine.host_bandwidth / 2
    ahead = _exchange(work.forward_messages, work.forward_bytes, machine) + host
    behind = _exchange(work.backward_messages, work.backward_bytes, machine) + host
    spread = machine.overlap
    # Host copies are fetched ahead, so they have the whole pass where nothing narrower is said.
    ahead_window = work.forward_window or float(host > 0)
    behind_window = work.backward_window or float(host > 0)
    crowding = work.crowding
    return Time(
        compute=crowding * (forward + backward),
        tables=crowding * work.memory_bytes / machine.memory_bandwidth,
        waited=crowding * _exchange(work.waited_messages, work.waited_bytes, machine),
        forward_exposed=crowding * max(0.0, ahead - spread * ahead_window * forward),
        backward_exposed=crowding * max(0.0, behind - spread * behind_window * backward),
        fixed=machine.fixed,
    )


def overhead(work: Work, base: Work, machine: Machine) -> float:
    """Step time over that of `base`, less 1: 0.07 is 7 % longer."""
    return step_time(work, machine).total / step_time(base, machine).total - 1


def _exchange(messages: float, size: float, machine: Machine) -> float:
    return messages * machine.latency + size / machine.link_bandwidth
