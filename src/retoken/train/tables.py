"""How tables are trained and where they live: options of a run, and the source of rows they ask for."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from transformers import PreTrainedModel

from retoken.config import ModulatorConfig, MoRTConfig, require_modulator
from retoken.errors import ConfigError

TableOptimizer = Literal["row_wise", "row_adamw", "adamw"]
TableDType = Literal["float32", "bfloat16"]
TableMemory = Literal["device", "host"]
TableLayout = Literal["auto", "V", "E", "VxE", "replicated"]
TableExchange = Literal["auto", "early", "routed", "mixed"]
_CHOICES = {
    "optimizer": TableOptimizer,
    "dtype": TableDType,
    "memory": TableMemory,
    "layout": TableLayout,
    "exchange": TableExchange,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """How token tables are trained, and where they live meanwhile."""

    optimizer: TableOptimizer = "row_wise"
    """On touched rows: "row_wise" keeps a number of state a row, "row_adamw" two a number; "adamw": dense."""
    dtype: TableDType = "float32"
    """Type of the stored rows; "bfloat16" rounds updates stochastically. Arithmetic is float32."""
    memory: TableMemory = "device"
    """"host": rows stay in host memory and are copied ahead to the device. One process only."""
    layout: TableLayout = "auto"
    """Over several processes: tables divided by token (V), by modulator (E), by both (VxE), or "replicated"
    (a copy in each, dense gradients); "auto": whichever moves the fewest bytes."""
    exchange: TableExchange = "auto"
    """What the owners of rows send: "early": all rows of a token, before the first layer; "routed": the
    chosen rows; "mixed": their mixture; "auto": as for the layout."""
    ranks: int = 0
    """Processes among which one copy of the tables is divided; 0: all of them."""

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            value, accepted = getattr(self, name), get_args(kind)
            if value not in accepted:
                raise ConfigError(f"tables.{name} is {value!r}; accepted: {', '.join(accepted)}")
        if type(self.ranks) is not int or self.ranks < 0:
            raise ConfigError(f"tables.ranks is {self.ranks!r}; accepted: 0 or more")
        if self.optimizer == "adamw" and (self.dtype, self.memory) != ("float32", "device"):
            raise ConfigError(
                f"tables.optimizer is 'adamw' with dtype {self.dtype} in {self.memory} memory; "
                "accepted there: row_wise, row_adamw"
            )
        if self.layout == "replicated" and self.optimizer != "adamw":
            raise ConfigError(
                f"tables.layout is 'replicated' with tables.optimizer {self.optimizer!r}; "
                "accepted there: adamw"
            )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def dense(self) -> bool:
        """Whether every process has whole tables, with dense gradients, however many there are."""
        return self.optimizer == "adamw" and self.layout in ("auto", "replicated")

    @property
    def stored(self) -> torch.dtype:
        """Type of the stored rows."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


def check_fits(options: TableOptions, attached: ModulatorConfig | None, processes: int) -> None:
    """Refuse what these options cannot mean for this modulator on so many processes.

    Raises:
        ConfigError: Host memory with several processes; modulators to divide or route where there is one.
    """
    if options.memory == "host" and processes > 1:
        raise ConfigError(f"tables.memory is 'host' with {processes} processes; accepted there: device")
    divided = processes > 1 and not options.dense
    if attached is not None and (options.memory == "host" or divided):
        require_modulator(attached, f"tables.memory {options.memory!r} on {processes} process(es)")
    if attached is None or isinstance(attached, MoRTConfig):
        return
    for name, accepted in (("layout", ("auto", "V", "replicated")), ("exchange", ("auto", "early"))):
        value = getattr(options, name)
        if value not in accepted:
            raise ConfigError(
                f"tables.{name} is {value!r} for ReToken; accepted there: {', '.join(accepted)}"
            )


def store_as(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give the tables of an attached model another type; the rest of it stays."""
    for module in model.retoken.layers.values():  # pyright: ignore
        module.table.to(dtype)  # pyright: ignore
