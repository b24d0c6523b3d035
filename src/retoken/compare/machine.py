"""Where a comparison ran: enough to read its timings by, nothing that names a person or a host."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from retoken import __version__

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """Machine and versions."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_bytes": _memory(),
        "gpu": _gpu(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {"retoken": __version__, **{name: version(name) for name in _PACKAGES}},
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _memory() -> int | None:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
