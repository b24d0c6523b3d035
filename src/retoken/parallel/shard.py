"""Divide the tables of an attached model among ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from retoken.errors import ConfigError
from retoken.nn import Modulator, ModulatorStack, TableFactory, TokenTable
from retoken.parallel.canonical import Canonical
from retoken.parallel.layout import Layout, LayoutName
from retoken.parallel.mesh import TableMesh
from retoken.parallel.source import ExchangeName, ShardedRows, ShardedTable


def shard_tables(
    stack: ModulatorStack,
    mesh: TableMesh,
    layout: LayoutName | Layout = "V",
    exchange: ExchangeName = "early",
    distinct: bool = True,
) -> ShardedRows:
    """Keep this rank's part of every table, and fetch rows from their owners from now on.

    Args:
        stack: `model.retoken`; every rank has the same whole tables, or tables that shard as they are built.
        mesh: the ranks that share them.
        layout: "V" by token, "E" by modulator, "VxE" by both; or a grid.
        exchange: "early": all rows of a token, before the first layer; "routed": the chosen rows; "mixed":
            their mixture, made at the owner.
        distinct: each row is asked for once; False: for every token, whatever `exchange`, as a yardstick.

    Raises:
        ConfigError: Layout or exchange don't fit the modulator.
    """
    found: Any = next(iter(stack.layers.values()))
    if isinstance(layout, Layout):
        grid = layout
    else:
        grid = Layout.make(layout, mesh.emp_size, found.table.vocab_size, stack.config.rows_per_token)
    if grid.ranks != mesh.emp_size:
        raise ConfigError(
            f"layout is for {grid.ranks} ranks; accepted: one for the {mesh.emp_size} of the mesh"
        )
    source = ShardedRows(stack, mesh, grid, exchange, distinct)
    for module in stack.layers.values():
        assert isinstance(module, Modulator)
        if not isinstance(module.table, ShardedTable):
            module.table = ShardedTable(module.table, grid, mesh.emp_rank)
        elif module.table.layout != grid or module.table.rank != mesh.emp_rank:
            raise ConfigError("the tables are sharded already, in another layout; accepted: whole tables")
    stack.source = source  # pyright: ignore
    return source


def ignored_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The tables of a model whose rows have a source of their own: what FSDP2 and DDP are to leave alone."""
    stacks = [m for m in model.modules() if isinstance(m, ModulatorStack) and m.source is not None]
    return {module.table.weight for stack in stacks for module in stack.layers.values()}  # pyright: ignore


def canonical_tables(model: nn.Module) -> dict[str, Canonical]:
    """{parameter name: how it is divided}, for the tables of a model that are."""
    stacks = [m for m in model.modules() if isinstance(m, ModulatorStack)]
    sources = [(m, m.source) for m in stacks if isinstance(m.source, ShardedRows)]
    layouts = {
        id(weight): Canonical(source.layout, source.mesh)
        for _, source in sources
        for weight in source.weights().values()
    }
    return {name: layouts[id(p)] for name, p in model.named_parameters() if id(p) in layouts}


def sharded(layout: Layout, rank: int) -> TableFactory:
    """For `retoken.attach(..., table=...)`: this rank's part of each table, made one table after the other.

    No rank ever holds more than one whole table, and the parts are those of whole tables from the same seed.
    """

    def make(
        shape: tuple[int, ...], init_std: float, device: torch.device | None, dtype: torch.dtype | None
    ) -> TokenTable:
        return ShardedTable(TokenTable(shape, init_std, device, dtype), layout, rank)

    return make


def leave_to_tables(model: nn.Module) -> None:
    """Tell DistributedDataParallel, before it wraps `model`, that tables are none of its business."""
    ignored = {id(parameter) for parameter in ignored_parameters(model)}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in ignored]
    torch.nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
