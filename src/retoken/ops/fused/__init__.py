"""The layers' arithmetic on rows where they lie, for inference on a CPU: gather and compute in one pass.

`serves` and `near_table` say whether it can serve; the operators of `retoken.ops` serve everything else.
"""

from retoken.ops.fused.near import KINDS, SIZES, Near, near_table, serves
from retoken.ops.fused.ready import Gate, Mix, Route, kernels

__all__ = ["KINDS", "SIZES", "Gate", "Mix", "Near", "Route", "kernels", "near_table", "serves"]
