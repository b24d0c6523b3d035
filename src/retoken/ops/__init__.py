"""Pure functions: `naive` is the paper to the letter, the others compute the same faster."""

from retoken.ops.balance import RouterLoad, balance_loss, router_load
from retoken.ops.gate import gate
from retoken.ops.mix import mix_rows, residual
from retoken.ops.norm import normalize
from retoken.ops.route import Routing, block_input_norm, route

__all__ = [
    "RouterLoad",
    "Routing",
    "balance_loss",
    "block_input_norm",
    "gate",
    "mix_rows",
    "normalize",
    "residual",
    "route",
    "router_load",
]
