"""Peak memory of this process, honestly: what the system says was resident."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak(device: torch.device) -> None:
    """Let the peak start again from what is resident now, where the system can (Linux, CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def peak_bytes(device: torch.device) -> int:
    """Bytes: on a GPU what PyTorch allocated at most, on the CPU the process's largest resident size.

    On the CPU that includes the interpreter and its libraries, and, where the system keeps no peak that can
    be reset, whatever ran in this process before.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    known = _status("VmHWM")
    if known is not None:
        return known
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resident_bytes(device: torch.device) -> int:
    """Bytes resident now; 0 where the system does not say."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS") or 0


def _status(field: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(field + ":")]
    return int(found[0]) * 1024 if found else None
