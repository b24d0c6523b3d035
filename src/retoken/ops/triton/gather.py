"""Records gathered by the device, straight out of host memory (Sec. 3.3.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from retoken.ops.triton import launch
from retoken.ops.triton.launch import INTEGERS, MAX_CHUNK

ALIGN = 16
"""Bytes that records, parts and rooms are multiples of."""


class Parts(NamedTuple):
    """Where in a record the layers' parts are."""

    part_bytes: int
    """From one layer's rows to the next layer's, the first at 0."""
    scales_start: int
    """Where the scales are, the first layer's first."""
    scale_bytes: int
    """Of one layer's scales; 0: rows have none."""


def gather_parts(out_LCB: Tensor, records_NR: Tensor, ids_T: Tensor, first: int, parts: Parts) -> None:
    """out[l, t] = part first + l of record ids[t], then that part's scales: bytes, copied as they are.

    One launch on the current stream. Nothing on the host is read but sizes, so that it can be captured into a
    CUDA graph: a replay gathers whatever ids then lie in `ids_T`.

    Args:
        out_LCB: [L, C, B] uint8, contiguous, on the device; the first T of C are written, and of each
            room of B bytes the part and its scales.
        records_NR: [N, R] uint8, contiguous: in host memory that is registered with the device, or on it.
        ids_T: [T], int64 or int32, on the device, within 0 to N - 1: not checked.
        first: the number of the first of the L parts.
        parts: where they are.

    Raises:
        ValueError: a shape, type, size or device does not fit, or the device cannot read the records.
        ImportError: Triton is not installed.
    """
    layers, capacity, room = _checked(out_LCB, records_NR, ids_T, first, parts)
    kernel = launch.kernels("gather_kernels").gather_parts
    sizes = gather_sizes(records_NR.shape[1], room, parts)
    grid = (len(ids_T), layers, -(-parts.part_bytes // 4 // sizes["BLOCK"]))
    words = out_LCB.view(torch.int32), records_NR.view(torch.int32)
    with launch.on_device(kernel, out_LCB, ids_T):
        if len(ids_T):
            kernel[grid](*words, ids_T.contiguous(), first, capacity, **sizes)


def gather_sizes(record_bytes: int, room_bytes: int, parts: Parts) -> dict[str, int]:
    """The kernel's compile-time sizes, in words, and launch options: up to 2048 words for 8 warps."""
    words = parts.part_bytes // 4
    block = min(launch.power_of_two(words), MAX_CHUNK)
    return {
        "RECORD": record_bytes // 4,
        "PART": words,
        "SCALES": parts.scales_start // 4,
        "SCALE": parts.scale_bytes // 4,
        "ROOM": room_bytes // 4,
        "BLOCK": block,
        "BLOCK_S": launch.power_of_two(max(parts.scale_bytes // 4, 1)),
        "num_warps": max(block // 256, 1),
    }


def _checked(
    out_LCB: Tensor, records_NR: Tensor, ids_T: Tensor, first: int, parts: Parts
) -> tuple[int, int, int]:
    """L, C and B of what fits."""
    launch.check("out", out_LCB, (None, None, None), (torch.uint8,))
    launch.check("records", records_NR, (None, None), (torch.uint8,))
    launch.check("ids", ids_T, (None,), INTEGERS)
    layers, capacity, room = out_LCB.shape
    if len(ids_T) > capacity:
        raise ValueError(f"ids: {len(ids_T)}, accepted are up to {capacity}, the room there is")
    if parts.part_bytes + parts.scale_bytes > room:
        raise ValueError(f"out: rooms of {room} bytes, needed are {parts.part_bytes + parts.scale_bytes}")
    last = max((first + layers) * parts.part_bytes, parts.scales_start + (first + layers) * parts.scale_bytes)
    if last > records_NR.shape[1]:
        raise ValueError(f"records: {records_NR.shape[1]} bytes each, needed are {last}")
    for name, x, size in (("out", out_LCB, room), ("records", records_NR, records_NR.shape[1])):
        if size % ALIGN or x.data_ptr() % ALIGN or parts.part_bytes % ALIGN or not x.is_contiguous():
            raise ValueError(f"{name}: not contiguous in multiples of {ALIGN} bytes from an address of such")
    if parts.scale_bytes % 4 or parts.scales_start % 4:
        raise ValueError(
            f"parts: scales of {parts.scale_bytes} bytes at {parts.scales_start}, accepted: words"
        )
    return layers, capacity, room
