"""Operators that stand in vLLM's compiled graphs: each calls the modulator of the layer it stands in.

A graph carries no ids and no rows. They belong to the pass under way, which `passes.Pass` keeps in vLLM's
forward context, where its attention finds its own. `key` is a tensor that holds the layer's number: a number
would make every layer's part of the graph another one, to be compiled on its own.
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import torch
from torch import Tensor, library
from vllm.utils.torch_utils import direct_register_custom_op

from retoken.engines.vllm.passes import current

_LIBRARY = library.Library("retoken", "FRAGMENT")


def gate(increment: Tensor, key: Tensor) -> Tensor:
    """ReToken: the gated increment [..., D] (Eq. 2)."""
    return current().gate(increment, int(key))


def route(carried: Tensor, read: Tensor, key: Tensor) -> Tensor:
    """MoRT: choose from the state `read` [..., D] (Eq. 3).

    Returns a copy of `carried`, which the MLP is to read: so no compiler moves the choice behind the MLP, or
    leaves it out.
    """
    current().route(read, int(key))
    return carried.clone(memory_format=torch.contiguous_format)


def add(increment: Tensor, key: Tensor) -> Tensor:
    """MoRT: the increment [..., D] with the residual that layer `key` chose (Eq. 6)."""
    return current().add(increment, int(key))


def _fake_gate(increment: Tensor, key: Tensor) -> Tensor:
    return increment.new_empty(increment.shape)


def _fake_route(carried: Tensor, read: Tensor, key: Tensor) -> Tensor:
    return carried.new_empty(carried.shape)


for _function, _fake in ((gate, _fake_gate), (route, _fake_route), (add, _fake_gate)):
    direct_register_custom_op(_function.__name__, _function, fake_impl=_fake, target_lib=_LIBRARY)
