"""Where a pass's rows come from while tables train: gathered once, gradients row-sparse."""

from retoken.rows.gradient import FetchRows, add_row_gradient, row_gradient
from retoken.rows.local import Arrived, LocalRows, train_by_rows

__all__ = ["Arrived", "FetchRows", "LocalRows", "add_row_gradient", "row_gradient", "train_by_rows"]
