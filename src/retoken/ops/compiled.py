"""Compiling kernels with numba, and keeping what was compiled for later processes.

numba's own cache looks at the file of a kernel alone, not at those of what it calls: after an upgrade, code
of before could be taken for new.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc


@functools.cache
def sources() -> str:
    """A digest of all files that kernels are made of."""
    found = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        found.update(file.read_bytes())
    return found.hexdigest()


class _Cache(FunctionCache):
    """Finds what was compiled of these very sources."""

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return (*super()._index_key(sig, codegen), sources())


def _keep(made: Any, function: Callable[..., Any]) -> Any:
    with contextlib.suppress(RuntimeError):  # numba finds no folder it may write its cache to
        made._cache = _Cache(function)
    return made


def compiled(function: Callable[..., Any]) -> Any:
    """`njit` without reference counts (_nrt), which each row would change in memory that all threads share.

    No fastmath: a NaN stays one, nothing is reordered.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}
    return _keep(njit(**options)(function), function)


def called_by_c(function: Callable[[Any], None]) -> Any:
    """Compiled now, as what C calls with one address, by its own `address`."""
    signature = (types.intp,), types.void
    made = _keep(CFunc(function, signature, locals={}, options={"error_model": "numpy"}), function)
    made.compile()
    return made
