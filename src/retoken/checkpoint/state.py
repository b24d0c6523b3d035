"""The whole state of a run as named tensors: the model's, the optimizer's, and each process's random state.

Names: a parameter's or buffer's own, the modulators' as `save_pretrained` pins them (`….table`, `….router`);
`optimizer.{name}.{what}`; `rng.{process}.{device}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from retoken.checkpoint.chunks import Canonical, Chunk, canonical_chunk, of_dtensor, whole
from retoken.checkpoint.peers import Peers

OPTIMIZER, RNG = "optimizer.", "rng."
_MODULE_OF_ONE = re.compile(r"^(retoken\.layers\.\d+\.(?:table|router))\.weight$")


class Live(NamedTuple):
    """A tensor in use."""

    key: str
    """Its name in a checkpoint."""
    owner: str
    """The parameter whose it is, or whose state; a buffer's own name."""
    tensor: Tensor


def pinned(name: str) -> str:
    """The name of a parameter in checkpoints: `….table` and `….router` are modules here, tensors there."""
    return _MODULE_OF_ONE.sub(r"\1", name)


def model_tensors(model: nn.Module) -> Iterator[Live]:
    """Parameters, tied ones once, and the buffers that are saved."""
    for name, parameter in model.named_parameters():
        yield Live(pinned(name), name, parameter.detach())
    saved = set(model.state_dict())
    for name, buffer in model.named_buffers():
        if name in saved:
            yield Live(pinned(name), name, buffer)


def parameters_of(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, nn.Parameter, dict[str, Any]]]:
    """(name, parameter, its group) for all that the optimizer moves."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            yield name, parameter, group


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Iterator[Live]:
    """The optimizer's state of every parameter that has one; numbers as tensors without dimensions."""
    for name, parameter, _ in parameters_of(optimizer):
        for what, value in optimizer.state.get(parameter, {}).items():
            tensor = value.detach() if isinstance(value, Tensor) else torch.tensor(value)
            yield Live(f"{OPTIMIZER}{pinned(name)}.{what}", name, tensor)


def rng_tensors(rank: int, device: torch.device) -> dict[str, Tensor]:
    """The random state of this process."""
    states = {f"{RNG}{rank}.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"{RNG}{rank}.cuda"] = torch.cuda.get_rng_state(device)
    return states


def host_copy(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    canonical: Mapping[str, Canonical],
    device: torch.device,
    peers: Peers,
) -> dict[str, Chunk]:
    """The state as it is now, in memory of its own on the host: what this process is to write.

    A tensor that every process holds whole is written by one of them, so that all write about as much.

    Args:
        model, optimizer: DTensors are written as they are divided.
        canonical: {parameter name: how it is divided}, for tables that are divided otherwise.
        device: Whose random state it is.
        peers: The processes; with `canonical`, this is a collective of theirs.
    """
    found: dict[str, Chunk] = {}
    alike: list[Live] = []
    for live in (*model_tensors(model), *optimizer_tensors(optimizer)):
        if live.owner in canonical and live.tensor.dim():
            found[live.key] = _canonical(live.tensor, canonical[live.owner], peers)
        elif isinstance(live.tensor, DTensor):
            chunk = of_dtensor(live.tensor)
            if chunk is not None:
                found[live.key] = Chunk(_own(chunk.tensor), chunk.offsets, chunk.shape)
        else:
            alike.append(live)
    for live in _share(alike, peers):
        found[live.key] = whole(_own(live.tensor))
    return found | {key: whole(value) for key, value in rng_tensors(peers.rank, device).items()}


def _canonical(local: Tensor, layout: Canonical, peers: Peers) -> Chunk:
    rows = layout.to_canonical(local)
    shared = rows.untyped_storage().data_ptr() == local.untyped_storage().data_ptr()
    rows = _own(rows) if shared or not rows.is_contiguous() else rows.cpu()
    return canonical_chunk(rows, peers.rank, peers.size, tuple(layout.global_shape(local)))


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy on the host."""
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)


def _share(alike: list[Live], peers: Peers) -> Iterator[Live]:
    """This process's part of the tensors that all have: each, largest first, to whom has the least so far."""
    loads = [0] * peers.size
    for live in sorted(alike, key=lambda live: (-live.tensor.nbytes, live.key)):
        to = loads.index(min(loads))
        loads[to] += live.tensor.nbytes
        if to == peers.rank:
            yield live
