"""What one rank does in a step, in units that a machine's rates turn into seconds."""

from __future__ import annotations

from dataclasses import dataclass, fields

from retoken.plan.flow import Traffic
from retoken.plan.frequency import Frequencies
from retoken.plan.memory import fetched_bytes
from retoken.plan.shape import Batch, Grid, Tables

FLOAT = 4
HIDDEN = {
    "early": (("rows",), ("gradients",)),
    "routed": ((), ("gradients",)),
    "mixed": ((), ()),
    "sharded": ((), ("gradients",)),
}
"""Phases that travel beside the forward pass, and beside the backward pass; the rest is waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One optimizer step of the busiest rank; also the columns of a measurements file.

    Exchange comes in three parts: what is waited for on the spot; what travels while the forward pass
    computes; and what travels while the backward pass does. A window is the share of that pass which can hide
    it.
    """

    forward_flops: float = 0.0
    """Of the forward passes."""
    backward_flops: float = 0.0
    """Of the backward passes."""
    memory_bytes: float = 0.0
    """Read and written for the tables: lookups, their gradients, the row update."""
    host_bytes: float = 0.0
    """Between host memory and the device."""
    waited_messages: float = 0.0
    """Messages the rank sends in exchanges that nothing hides."""
    waited_bytes: float = 0.0
    """The larger of sent and received in them."""
    forward_messages: float = 0.0
    """Of exchanges in the forward pass that compute can hide."""
    forward_bytes: float = 0.0
    """The larger of sent and received in them."""
    forward_window: float = 0.0
    """Share of the forward compute that can hide them."""
    backward_messages: float = 0.0
    """Of exchanges in the backward pass that compute can hide."""
    backward_bytes: float = 0.0
    """The larger of sent and received in them."""
    backward_window: float = 0.0
    """Share of the backward compute that can hide them."""
    crowding: float = 1.0
    """Ranks that share one core, or one device: 1 where each has its own."""

    @classmethod
    def columns(cls) -> tuple[str, ...]:
        """The names of its numbers."""
        return tuple(field.name for field in fields(cls))


def backbone_work(
    batch: Batch,
    flops_per_token: float,
    params: int,
    num_layers: int,
    sharding: str,
    *,
    forwards: int = 1,
    recomputed: bool = False,
) -> Work:
    """The step without tables.

    Training FLOPs are one part forward and two backward. DDP all-reduces float32 gradients once a step behind
    the backward pass; FSDP gathers weights for every forward and backward pass and reduces gradients after
    it, layer by layer: rings in 2 (N - 1) and N - 1 messages.

    Args:
        batch: tokens and ranks.
        flops_per_token: of training, forward and backward.
        params: parameters that travel.
        num_layers: units that FSDP gathers.
        sharding: "ddp" or "fsdp".
        forwards: forward passes per micro-batch; 2 where MoRT's loads are counted ahead.
        recomputed: whether the backward pass computes activations again.
    """
    third = flops_per_token * batch.rank_tokens / 3
    common = {"forward_flops": forwards * third, "backward_flops": (2 + recomputed) * third}
    if batch.ranks == 1:
        return Work(**common)
    ring = batch.ranks - 1
    once = ring / batch.ranks * params * FLOAT
    if sharding == "ddp":
        return Work(**common, backward_messages=2 * ring, backward_bytes=2 * once, backward_window=1.0)
    passes, units = batch.micro_batches, num_layers + 1
    return Work(
        **common,
        forward_messages=forwards * passes * units * ring,
        forward_bytes=forwards * passes * once,
        forward_window=num_layers / units,
        backward_messages=2 * passes * units * ring,
        backward_bytes=2 * passes * once,
        backward_window=num_layers / units,
    )


def with_exchange(base: Work, traffic: Traffic, num_layers: int, option: str) -> Work:
    """`base` and the exchange of a step.

    Rows that are asked for by id ("early") travel while the layers below compute: all of the forward pass but
    its first layer hides them. Gradients of rows travel while the backward pass goes on. Everything else is
    waited for: counts and ids, whatever a router has to be asked for first, and what replicas exchange behind
    the backward pass.
    """
    forward, backward = (set(names) for names in HIDDEN[option])
    waited = set(traffic.lanes) - forward - backward
    window = 1 - 1 / num_layers
    return add(
        base,
        waited_messages=traffic.messages(*waited),
        waited_bytes=traffic.flow(*waited).busiest,
        forward_messages=traffic.messages(*forward) if forward else 0,
        forward_bytes=traffic.flow(*forward).busiest if forward else 0.0,
        forward_window=window if forward else 0.0,
        backward_messages=traffic.messages(*backward) if backward else 0,
        backward_bytes=traffic.flow(*backward).busiest if backward else 0.0,
        backward_window=window if backward else 0.0,
    )


def with_dense_tables(base: Work, traffic_bytes: float, ranks: int) -> Work:
    """`base` and the ladder's first rung: replicated tables, gradients all-reduced in the backward pass."""
    return add(
        base,
        backward_messages=2 * (ranks - 1),
        backward_bytes=traffic_bytes,
        backward_window=1.0 if ranks > 1 else 0.0,
    )


def table_bytes(
    tables: Tables,
    grid: Grid,
    batch: Batch,
    frequencies: Frequencies,
    *,
    optimizer: str,
    option: str,
    ranks: int,
) -> float:
    """Bytes that one rank reads and writes for its tables in a step.

    Per token and layer, with n rows used (1, or K, of each lookup): forward reads n rows and the increment
    and writes it; backward reads both and the gradient, writes one, and adds n rows: 4 n + 5 times D float32.
    Rows fetched are read and written once each way, and an owner does so with what it answers. Updating a
    touched row reads and writes weight and state and reads the gradient; a dense optimizer does that for
    every row, and its gradient is zeroed and filled besides.
    """
    per_token = (4 * tables.top_k * frequencies.lookups + 5) * tables.width * tables.layers * FLOAT
    work = batch.rank_tokens * per_token
    held = int(grid.modulators_of(tables.modulators)[0]) * tables.width * tables.layers
    if optimizer == "adamw":
        everything = int(grid.tokens_of(tables.vocab_size)[0]) * held
        return work + everything * (2 * tables.row_bytes + 16 + 4 + 2 * FLOAT)
    moved = 4 * batch.micro_batches * fetched_bytes(tables, batch.tokens, frequencies, option)
    touched = frequencies.unique(batch.step_tokens, grid.vocab_shards).max()
    state = 16 if optimizer == "row_adamw" else 0
    return float(work + moved * (2 if ranks > 1 else 1) + touched * held * (3 * tables.row_bytes + state))


def host_bytes(tables: Tables, batch: Batch, frequencies: Frequencies) -> float:
    """Rows up and their gradients down, per step, where tables are in host memory."""
    return 2 * batch.micro_batches * fetched_bytes(tables, batch.tokens, frequencies, "early")


def add(base: Work, **more: float) -> Work:
    """Sums; of two windows the wider one, for traffic of both shares it."""
    values = {name: getattr(base, name) for name in Work.columns()}
    for name, value in more.items():
        values[name] = max(values[name], value) if name.endswith("window") else values[name] + value
    return Work(**values)
