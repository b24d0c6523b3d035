"""Token-indexed parameters for language models: ReToken (JTok) and MoRT (JTok-M)."""

from retoken.attach import (
    Family,
    attach,
    balance_loss,
    batch_load,
    detach,
    fold,
    modulators,
    param_groups,
    register_family,
    router_loads,
    use_kernels,
)
from retoken.attach.checkpoint import register_known_families
from retoken.config import MoRTConfig, ReTokenConfig, config_from_dict
from retoken.serving import Placement, load, pack, place
from retoken.serving.load import serve_rows_file

__version__ = "0.1.0"
__all__ = [
    "Family",
    "MoRTConfig",
    "Placement",
    "ReTokenConfig",
    "attach",
    "balance_loss",
    "batch_load",
    "config_from_dict",
    "detach",
    "fold",
    "load",
    "modulators",
    "pack",
    "param_groups",
    "place",
    "register_family",
    "router_loads",
    "use_kernels",
]

register_known_families(serve_rows_file)
