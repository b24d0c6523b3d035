"""Optimizer updates of the rows a step touched, in place: compiled on a CPU, in torch elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from retoken.ops.row_update import cpu, naive
from retoken.ops.row_update.jobs import AdamRows, DecayRows, Noise, Rates, RowWiseRows, bias_corrections
from retoken.ops.row_update.noise import noise_key
from retoken.ops.row_update.pages import is_small, untouched, use_huge_pages

__all__ = [
    "AdamRows",
    "DecayRows",
    "Noise",
    "Rates",
    "RowWiseRows",
    "bias_corrections",
    "is_small",
    "noise_key",
    "untouched",
    "update_rows",
    "use_huge_pages",
]

_NAIVE = {AdamRows: naive.adamw, RowWiseRows: naive.row_wise, DecayRows: naive.decay}


def update_rows(jobs: Sequence[AdamRows | RowWiseRows | DecayRows]) -> None:
    """Do all jobs, each on another table; together, so that threads are started once.

    Weights, states and counters of the rows `ids_R` are written in place; no other row is read. On a CPU the
    first call compiles (1 to 3 seconds a kernel; later processes load it from numba's cache in 0.5), and as
    many threads as torch uses share the rows. Their number changes no bit.

    Raises:
        IndexError: a row id is outside its table.
    """
    compiled = [job for job in jobs if cpu.takes(job)]
    if compiled:
        cpu.run(compiled, torch.get_num_threads())
    for job in jobs:
        if not cpu.takes(job):
            _NAIVE[type(job)](job)
