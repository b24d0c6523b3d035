"""How a training process on CPU treats memory it has freed."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Ask glibc to keep large freed blocks for the next step instead of returning them to the kernel.

    A training step frees and allocates the same tens of megabytes (logits, dense table gradients) each time;
    returned to the kernel, every page is faulted in and zeroed again. The peak rises by fragmentation only.

    Returns:
        Whether the C library took the setting; other libraries than glibc are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return False
    wanted = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 << 20))
    return all(libc.mallopt(option, value) == 1 for option, value in wanted)
