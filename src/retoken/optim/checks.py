"""What optimizers by rows accept, by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from retoken.errors import ConfigError

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def named(group: dict[str, Any]) -> Iterable[tuple[str, nn.Parameter]]:
    """(name, parameter) of a group; a place where it has no names."""
    names = group.get("param_names") or [f"parameter {i}" for i in range(len(group["params"]))]
    return zip(names, group["params"], strict=True)


def log_factor(group: dict[str, Any]) -> float:
    """log(1 - lr * weight_decay) of a step."""
    decay = float(group["lr"]) * group["weight_decay"]
    if decay >= 1:
        raise ConfigError(f"lr * weight_decay is {decay:g}; accepted: below 1")
    return math.log1p(-decay)


def check_rates(group: dict[str, Any]) -> None:
    """Refuse rates out of range."""
    for name in ("lr", "eps", "weight_decay"):
        if not group[name] >= 0:
            raise ConfigError(f"{name} is {group[name]}; accepted: 0 or more")
    betas = group.get("betas", (group.get("beta2", 0.0),))
    if not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(f"betas are {betas}; accepted: from 0 to below 1")


def check_table(name: str, parameter: nn.Parameter) -> None:
    """Refuse what is no table of rows."""
    if parameter.dim() < 2 or parameter.dtype not in DTYPES:
        raise ConfigError(
            f"{name} is {parameter.dtype} {list(parameter.shape)}; accepted for updates by rows: "
            "[V, ...] of float32, bfloat16 or float64"
        )


def check_gradient(name: str, parameter: nn.Parameter) -> None:
    """Refuse a gradient that is not rows of the table, each once."""
    gradient: Any = parameter.grad
    found = None
    if not gradient.is_sparse:
        found = "dense"
    elif not gradient.is_coalesced():
        found = "not coalesced"
    elif gradient.sparse_dim() != 1 or gradient._values().shape[1:] != parameter.shape[1:]:
        found = f"of rows {list(gradient._values().shape[1:])}, {gradient.sparse_dim()} sparse dimensions"
    if found:
        raise ConfigError(
            f"the gradient of {name} is {found}; accepted: coalesced sparse rows {list(parameter.shape[1:])}"
        )
