"""Putting modulators on a Hugging Face causal language model, and taking them off again."""

from retoken.attach.api import attach, balance_loss, batch_load, detach, modulators, router_loads
from retoken.attach.checkpoint import register_family
from retoken.attach.families import FAMILIES, Family, decoder_layers
from retoken.attach.fold import fold
from retoken.attach.groups import param_groups
from retoken.attach.kernels import use_kernels

__all__ = [
    "FAMILIES",
    "Family",
    "attach",
    "balance_loss",
    "batch_load",
    "decoder_layers",
    "detach",
    "fold",
    "modulators",
    "param_groups",
    "register_family",
    "router_loads",
    "use_kernels",
]
