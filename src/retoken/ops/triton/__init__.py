"""Triton kernels: ReToken's gate, MoRT's choice and mixture, and records out of host memory.

Triton is imported by the first call, not by this import; `retoken.ops` does not import this package.
"""

from retoken.ops.triton.gate import folded_gate_rows, gate_rows
from retoken.ops.triton.gather import Parts, gather_parts
from retoken.ops.triton.mix import folded_row_into, mix_rows_into
from retoken.ops.triton.route import route_tokens

__all__ = [
    "Parts",
    "folded_gate_rows",
    "folded_row_into",
    "gate_rows",
    "gather_parts",
    "mix_rows_into",
    "route_tokens",
]
