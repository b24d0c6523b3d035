"""Bytes of memory on the fullest rank, by kind. Activations are not counted: see `Memory.left`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from retoken.plan.frequency import Frequencies
from retoken.plan.shape import Batch, Grid, Tables, require

Optimizer = Literal["row_wise", "row_adamw", "adamw"]
Sharding = Literal["ddp", "fsdp"]
Location = Literal["device", "host"]
DENSE_ADAMW = 16
"""Bytes per parameter of float32 AdamW: weight, gradient, two moments."""
MOMENTS, FLOAT, ID, COUNT, SETTLED = 8, 4, 8, 4, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes by kind."""

    device: dict[str, int]
    """Where the rank computes."""
    host: dict[str, int]
    """Tables kept in host memory; empty where they are on the device."""

    @property
    def device_total(self) -> int:
        """Of all kinds on the device."""
        return sum(self.device.values())

    @property
    def host_total(self) -> int:
        """Of all kinds in host memory."""
        return sum(self.host.values())

    def left(self, capacity: float) -> float:
        """What a device of that many bytes has left for activations; negative where it does not fit."""
        return capacity - self.device_total


def check_choices(optimizer: str, sharding: str, location: str) -> None:
    """Raises ConfigError for a word that is none of the accepted."""
    for option, value, kind in (
        ("tables.optimizer", optimizer, Optimizer),
        ("data_parallel", sharding, Sharding),
        ("tables.memory", location, Location),
    ):
        require(value in get_args(kind), option, repr(value), ", ".join(get_args(kind)))


def backbone_memory(params: int, ranks: int, sharding: str, gathered: int = 0) -> dict[str, int]:
    """Float32 weights, gradients and AdamW moments of everything that is no table row.

    Args:
        params: parameters of the backbone, scales and routers.
        ranks: processes that "fsdp" splits them over; "ddp" keeps all on each.
        sharding: "ddp" or "fsdp".
        gathered: parameters of the largest unit that FSDP gathers; two are there at a time, one used, one on
            its way.
    """
    own = params if sharding == "ddp" else -(-params // ranks)
    kinds = {
        "backbone weights": FLOAT * own,
        "backbone gradients": FLOAT * own,
        "backbone optimizer": MOMENTS * own,
    }
    if sharding == "fsdp" and ranks > 1:
        kinds["backbone gathered"] = 2 * FLOAT * gathered
    return kinds


def state_bytes(optimizer: str, tables: Tables, tokens: int, modulators: int, *, decays: bool = False) -> int:
    """Optimizer state of one owner: `tokens` ids with `modulators` rows each, over all layers.

    row_adamw: two float32 moments an element, and an int32 count of touches a token. row_wise: a float32
    for each of a token's modulators, and that count. With decay both keep a float64 a token besides: how far
    its decay has come. adamw: two float32 moments an element.
    """
    each = tables.layers * tokens
    per_token = COUNT + (SETTLED if decays else 0)
    return {
        "row_adamw": each * (MOMENTS * modulators * tables.width + per_token),
        "row_wise": each * (FLOAT * modulators + per_token),
        "adamw": each * MOMENTS * modulators * tables.width,
    }[optimizer]


def table_memory(
    tables: Tables,
    grid: Grid,
    batch: Batch,
    frequencies: Frequencies,
    *,
    optimizer: str,
    option: str,
    decays: bool = False,
) -> dict[str, int]:
    """Everything that belongs to the tables on the fullest owner, by kind.

    Touched-row gradients are those of a whole step: the ids that any rank touched, a sorted int64 index for
    each layer. Fetched rows are one forward pass's, of all layers until its backward. The exchange holds
    gradients on their way out, as many as rows were fetched, and those that came in for this owner's rows,
    until the backward pass is over; under "mixed" it holds weights and places of the tokens mixed here.
    """
    tokens = int(grid.tokens_of(tables.vocab_size)[0])
    held = int(grid.modulators_of(tables.modulators)[0])
    elements = tables.layers * tokens * held * tables.width
    kinds = {
        "table rows": elements * tables.row_bytes,
        "table optimizer": state_bytes(optimizer, tables, tokens, held, decays=decays),
    }
    if optimizer == "adamw":
        kinds["table gradients"] = FLOAT * elements
        if grid.size == 1:
            return kinds
    touched = frequencies.unique(batch.step_tokens, grid.vocab_shards).max()
    row = held * tables.width * tables.gradient_bytes
    kinds["touched-row gradients"] = round(tables.layers * touched * (row + ID))
    kinds["fetched rows"] = round(fetched_bytes(tables, batch.tokens, frequencies, option))
    if grid.size > 1:
        kinds["exchange"] = round(_exchange_bytes(tables, grid, batch.tokens, frequencies, option))
    return kinds


def fetched_bytes(tables: Tables, tokens: int, frequencies: Frequencies, option: str) -> float:
    """What one rank keeps of a pass over `tokens` tokens until its backward, all layers, float32 or wider.

    early: all rows of each distinct id; routed: distinct (id, modulator) pairs; mixed: a mixture for each
    token;
    sharded: a row for each token and modulator chosen.
    """
    per_element = max(FLOAT, tables.row_bytes)
    if option in ("mixed", "sharded"):
        rows: float = tokens * frequencies.lookups * (tables.top_k if option == "sharded" else 1)
    else:
        chance = tables.top_k / tables.modulators if option == "routed" else 1.0
        rows = tables.modulators * frequencies.unique(tokens, 1, chance).sum()
    return tables.layers * rows * tables.width * per_element


def _exchange_bytes(tables: Tables, grid: Grid, tokens: int, frequencies: Frequencies, option: str) -> float:
    held = int(grid.modulators_of(tables.modulators)[0])
    share = grid.size * tokens * frequencies.shares(grid.vocab_shards).max()
    if option == "mixed":
        return tables.layers * share * (FLOAT * held + ID) + share * tables.width * FLOAT
    if option == "sharded":
        come = share * tables.top_k * held / tables.modulators
    else:
        chance = tables.top_k / tables.modulators if option == "routed" else 1.0
        come = grid.size * frequencies.unique(tokens, grid.vocab_shards, chance).max() * held
    out = fetched_bytes(tables, tokens, frequencies, option)
    return out + tables.layers * come * tables.width * tables.gradient_bytes


def per_rank(
    *,
    backbone_params: int,
    gathered_params: int,
    tables: Tables | None,
    grid: Grid,
    batch: Batch,
    frequencies: Frequencies,
    optimizer: str = "row_wise",
    sharding: str = "ddp",
    option: str = "early",
    location: str = "device",
    decays: bool = False,
) -> Memory:
    """Memory of the fullest rank.

    With tables in host memory, rows, optimizer state and gradients are there; fetched rows and the exchange
    stay.
    """
    check_choices(optimizer, sharding, location)
    device = backbone_memory(backbone_params, batch.ranks, sharding, gathered_params)
    if tables is None:
        return Memory(device=device, host={})
    kinds = table_memory(tables, grid, batch, frequencies, optimizer=optimizer, option=option, decays=decays)
    if location == "device":
        return Memory(device=device | kinds, host={})
    here = {name: size for name, size in kinds.items() if name in ("fetched rows", "exchange")}
    return Memory(device=device | here, host={name: size for name, size in kinds.items() if name not in here})


def bytes_per_parameter(tables: Tables, optimizer: str, *, decays: bool = False) -> float:
    """Bytes of rows, optimizer state and dense gradient per table parameter, against `DENSE_ADAMW`."""
    state = state_bytes(optimizer, tables, tables.vocab_size, tables.modulators, decays=decays)
    return tables.row_bytes + state / tables.params + (FLOAT if optimizer == "adamw" else 0)
