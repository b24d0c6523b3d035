"""The layers' arithmetic on rows where they lie, for inference on a CPU: gather and compute in one pass.

`serves` and `near_table` say whether it can serve; the operators of `retoken.ops` serve everything else.
"""

from retoken.ops.fused.near import KINDS, SIZES, Near, Places, near_table, serves
from retoken.ops.fused.ready import Gate, Mix, Route, kernels, passes
from retoken.ops.fused.room import Room, Routed, Unserved

__all__ = [
    "KINDS",
    "SIZES",
    "Gate",
    "Mix",
    "Near",
    "Places",
    "Room",
    "Route",
    "Routed",
    "Unserved",
    "kernels",
    "near_table",
    "passes",
    "serves",
]
