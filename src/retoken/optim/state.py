"""Optimizer state by rows: made without taking memory, loaded without changing its type."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from retoken.errors import ConfigError
from retoken.ops.row_update import untouched

FROM_BYTES = 1 << 20
"""Smaller tensors gain nothing from pages of their own."""


def zeros_like_rows(
    parameter: nn.Parameter, shape: Iterable[int] | None = None, *, huge_pages: bool = True
) -> Tensor:
    """Zeros in the type of a table's state; of its shape, or another."""
    dtype = torch.float64 if parameter.dtype == torch.float64 else torch.float32
    shape = tuple(parameter.shape if shape is None else shape)
    return zeros(shape, dtype, parameter.device, huge_pages=huge_pages)


def zeros(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, huge_pages: bool = True
) -> Tensor:
    """Zeros that take memory on a CPU page by page, as they are first written."""
    size = math.prod(shape) * dtype.itemsize
    # torch.zeros writes its zeros, and calloc may have memory to reuse, so it would, too.
    pages = untouched(size, huge=huge_pages) if device.type == "cpu" and size >= FROM_BYTES else None
    if pages is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def load_state(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    """Give an optimizer the groups and state of another's `state_dict()`.

    Numbers stay where they are, other tensors go to their parameter's device; nothing changes its type.

    Raises:
        ConfigError: It has other groups.
    """
    ours, theirs = optimizer.param_groups, state_dict["param_groups"]
    check_groups(optimizer, theirs)
    parameters: dict[int, Any] = {}
    for group, saved in zip(ours, theirs, strict=True):
        parameters |= dict(zip(saved["params"], group["params"], strict=True))
        group.update({key: value for key, value in saved.items() if key != "params"})
    optimizer.state.clear()
    for index, state in state_dict["state"].items():
        parameter = parameters[index]
        optimizer.state[parameter] = {what: _placed(value, parameter) for what, value in state.items()}


def check_groups(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> None:
    """Refuse groups of another number or size than the optimizer's."""
    found, expected = ([len(group["params"]) for group in x] for x in (groups, optimizer.param_groups))
    if found != expected:
        raise ConfigError(f"optimizer state has groups of {found} parameters; accepted: {expected}")


def _placed(value: Any, parameter: Tensor) -> Any:
    return value.to(parameter.device) if isinstance(value, Tensor) and value.dim() else value
