"""The processes of a run: one, or as many as torchrun started. The loop asks; it never counts them itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from retoken.attach import decoder_layers
from retoken.errors import ConfigError
from retoken.parallel import ignored_parameters, leave_to_tables
from retoken.train.meeting import has_old_store, meet_again
from retoken.train.memory import keep_freed_memory


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """Who this process is among the processes of the run."""

    rank: int = 0
    """Number of this process; 0 writes the files."""
    size: int = 1
    """Number of processes."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Where this process computes."""
    timeout: timedelta | None = None
    """How long processes wait for one another; None: PyTorch's default."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, model: PreTrainedModel, divided: bool = False) -> nn.Module:
        """The model whose backward averages gradients over the processes; tables see to their own.

        Args:
            model: on this process's device.
            divided: divide parameters, gradients and optimizer state (FSDP2) in place of a copy each (DDP).
        """
        if self.size == 1:
            return model
        if divided:
            return self._divide(model)
        leave_to_tables(model)
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def _divide(self, model: PreTrainedModel) -> nn.Module:
        mesh = init_device_mesh(self.device.type, (self.size,))
        ignored = ignored_parameters(model)
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh, ignored_params=ignored)
        return model

    def sum(self, values: Tensor) -> Tensor:
        """Elementwise sum over the processes."""
        if self.size > 1:
            values = values.to(self.device, copy=True)
            dist.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether any process raised the flag; all processes get the same answer."""
        return flag if self.size == 1 else bool(self.sum(torch.tensor([float(flag)])).item())

    def gather(self, values: Tensor) -> Tensor:
        """[size, ...]: every process's values, of one shape and type."""
        if self.size == 1:
            return values.unsqueeze(0)
        values = values.to(self.device)
        parts = [torch.empty_like(values) for _ in range(self.size)]
        dist.all_gather(parts, values)
        return torch.stack(parts).cpu()

    def wait(self) -> None:
        """Until every process is here."""
        if self.size > 1:
            dist.barrier()

    def share_of(self, batch_size: int) -> int:
        """Sequences of this process in a batch of `batch_size` over all.

        Raises:
            ConfigError: The batch does not split evenly.
        """
        if batch_size % self.size:
            raise ConfigError(
                f"batch_size is {batch_size} with {self.size} processes; accepted: a multiple of {self.size}"
            )
        return batch_size // self.size


@contextmanager
def open_world(device: str, threads: int, timeout: int = 600) -> Iterator[World]:
    """This process's world for one run: its threads, its process group under torchrun; undone behind it."""
    before = torch.get_num_threads()
    if threads:
        torch.set_num_threads(threads)
    joins = not dist.is_initialized()
    size = int(os.environ.get("WORLD_SIZE", "1")) if joins else dist.get_world_size()
    chosen = _device(device)
    if chosen.type == "cpu":
        keep_freed_memory()
    try:
        if size > 1 and joins:
            _join(chosen, timedelta(seconds=timeout))
        rank = dist.get_rank() if size > 1 else 0
        yield World(rank=rank, size=size, device=chosen, timeout=timedelta(seconds=timeout))
    finally:
        if size > 1 and joins and dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(before)


def _join(device: torch.device, timeout: timedelta) -> None:
    """Make the default process group, of those that were started together with this process."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    if not has_old_store():
        dist.init_process_group(backend, timeout=timeout)
        return
    store, rank, size = meet_again(timeout)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device is 'cuda', and PyTorch finds no GPU; accepted here: auto, cpu")
    if name == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
