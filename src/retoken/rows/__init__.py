"""Where a pass's rows come from while tables train: gathered once, gradients row-sparse."""

from retoken.rows.gradient import FetchRows, add_row_gradient, row_gradient
from retoken.rows.host import HostRows, HostTable, train_from_host
from retoken.rows.local import Arrived, LocalRows, train_by_rows

__all__ = [
    "Arrived",
    "FetchRows",
    "HostRows",
    "HostTable",
    "LocalRows",
    "add_row_gradient",
    "row_gradient",
    "train_by_rows",
    "train_from_host",
]
