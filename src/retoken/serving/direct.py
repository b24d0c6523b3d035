"""Rows that the device gathers itself out of host memory (Sec. 3.3.1).

The host tier is registered with the device, and a kernel on the side stream reads the records of the pass's
ids where they lie. Ids are read on the device too: the host touches no row, and a graph that captures a pass
captures its gather.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from typing import Literal

import torch
from torch import Tensor

from retoken.ops.triton import Parts, gather_parts
from retoken.serving.layout import RecordLayout
from retoken.serving.packed import sampled
from retoken.serving.stage import CAPACITY, Buffers, Stage

Gatherer = Literal["host", "device"]
"""Who gathers the records of a pass that are in host memory, where the model computes on a device: the
host, into page-locked buffers that are copied; or the device, straight out of host memory."""
PORTABLE, MAPPED = 1, 2
"""Flags of cudaHostRegister."""


class DeviceStage(Stage):
    """Buffers that the device fills from records in host memory."""

    gathered_by = "device"

    def __init__(
        self, layout: RecordLayout, records: Tensor, device: torch.device, capacity: int = CAPACITY
    ) -> None:
        """Starts nothing.

        Args:
            layout: of the records.
            records: [V, record_bytes] uint8, by token id, in host memory that the device may read.
            device: where the model computes.
            capacity: positions there is room for from the start.
        """
        self.records = records
        self.parts = Parts(layout.part_bytes, layout.scales_start, layout.layer_scale_bytes)
        super().__init__(layout, self._on_host, device, capacity)

    def forget(self) -> None:
        """Records are about to change: wait until nothing reads them. Replays of graphs are the caller's."""
        super().forget()
        for buffers in self._sets:
            if buffers.events:
                self.lane.finish(buffers.events[-1])

    def agrees(self) -> bool:
        """Whether the device gathers what the host does, of records spread over the vocabulary."""
        ids = sampled(self.layout.vocab_size)
        try:
            found = self.prefetch(ids)
            self.wait()
            got = found.device[:, : len(ids)].cpu()
        except (RuntimeError, ValueError):  # Triton or the driver finds that the memory cannot be read
            return False
        finally:
            self.forget()
        wanted, used = torch.zeros_like(got), self.layout.part_bytes + self.layout.layer_scale_bytes
        self.layout.parts_of(self._on_host(ids), 0, out=wanted)
        return torch.equal(got[..., :used], wanted[..., :used])

    def _on_host(self, ids_R: Tensor) -> Tensor:
        return self.records.index_select(0, ids_R)

    def _buffers(self, capacity: int) -> Buffers:
        return Buffers(self.layout, capacity, self.device, by_host=False)

    def _capture(self, ids: Tensor) -> Buffers:
        """Room of this pass's own, as its other tensors are: each replay gathers what the ids then are."""
        into = self._buffers(ids.numel())
        self._fill(into, ids.reshape(-1))
        into.positions = torch.arange(ids.numel(), device=self.device).view(ids.shape)
        return into

    def _fill(self, into: Buffers, ids_R: Tensor) -> None:
        """Gather the records of ids, all layers at once or one by one; an event follows each launch."""
        ids_R = ids_R.to(self.device)
        self.lane.follow()
        layers, into.events = len(self.layout.layers), []
        few = layers * len(ids_R) * self.layout.staged_bytes <= self.at_once
        # Of a captured pass always: a graph saves the host all launches, and many in one are not explained.
        step = layers if few or self.lane.capturing() else 1
        for first in range(0, layers, step):
            out = into.device[first : first + step]
            self.lane.launch(
                functools.partial(gather_parts, out, self.records, ids_R, first, self.parts), ids_R
            )
            into.events += [self.lane.mark()] * step


def device_stage(layout: RecordLayout, records: Tensor, device: torch.device) -> DeviceStage | None:
    """The stage of a host tier that the device reads itself; None: it may not, or reads something else.

    Args:
        layout: of the records.
        records: [V, record_bytes] uint8, by token id, in host memory. Registered until the stage is gone.
        device: a CUDA device.
    """
    if not _register(records, device):
        return None
    stage = DeviceStage(layout, records, device)
    weakref.finalize(stage, _unregister, records.data_ptr(), device).atexit = False
    return stage if stage.agrees() else None


def _register(memory: Tensor, device: torch.device) -> bool:
    """Lock the pages of host memory and let devices read them; false where that is refused."""
    cudart, flags = torch.cuda.cudart(), PORTABLE | MAPPED
    with torch.cuda.device(device):
        if int(cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, flags)) == 0:  # pyright: ignore
            return True
        with contextlib.suppress(RuntimeError):  # takes the error away, or the next launch would report it
            torch.zeros(1, device=device)
    return False


def _unregister(address: int, device: torch.device) -> None:
    torch.cuda.synchronize(device)
    torch.cuda.cudart().cudaHostUnregister(address)  # pyright: ignore
