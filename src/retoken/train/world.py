"""The processes of a run: one, or as many as torchrun started. The loop asks; it never counts them itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from retoken.errors import ConfigError
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

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward averages gradients over the processes (the seam for FSDP)."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

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
def open_world(device: str, threads: int) -> Iterator[World]:
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
            dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
        rank = dist.get_rank() if size > 1 else 0
        yield World(rank=rank, size=size, device=chosen)
    finally:
        if size > 1 and joins and dist.is_initialized():
            dist.destroy_process_group()
        torch.set_num_threads(before)


def _device(name: str) -> torch.device:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device is 'cuda', and PyTorch finds no GPU; accepted here: auto, cpu")
    if name == "cpu" or not available:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device
