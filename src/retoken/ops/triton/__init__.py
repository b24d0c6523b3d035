"""The two fused operations as Triton kernels: ReToken's gate, and MoRT's mixture added to the increment.

Triton is imported by the first call, not by this import; `retoken.ops` does not import this package.
"""

from retoken.ops.triton.gate import folded_gate_rows, gate_rows
from retoken.ops.triton.mix import folded_row_into, mix_rows_into

__all__ = ["folded_gate_rows", "folded_row_into", "gate_rows", "mix_rows_into"]
