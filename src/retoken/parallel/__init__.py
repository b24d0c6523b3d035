"""Embedding parallel: tables divided among ranks, rows exchanged by all-to-all (App. B)."""

from retoken.parallel.canonical import Canonical
from retoken.parallel.layout import Layout, LayoutName
from retoken.parallel.mesh import TableMesh, open_mesh
from retoken.parallel.shard import (
    canonical_tables,
    ignored_parameters,
    leave_to_tables,
    shard_tables,
    sharded,
)
from retoken.parallel.source import ExchangeName, ShardedRows, ShardedTable
from retoken.parallel.traffic import Traffic

__all__ = [
    "Canonical",
    "ExchangeName",
    "Layout",
    "LayoutName",
    "ShardedRows",
    "ShardedTable",
    "TableMesh",
    "Traffic",
    "canonical_tables",
    "ignored_parameters",
    "leave_to_tables",
    "open_mesh",
    "shard_tables",
    "sharded",
]
