"""The least that moving scattered rows takes: their gradient is added to them, and nothing else."""

# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from retoken.ops.compiled import compiled
from retoken.ops.row_update.lanes import LANES, ask_for, load, store


@compiled
def add_rows(weight, grad, ids, start, stop):
    """weight[ids] += grad for rows start to stop, [V, N] and [R, N] float32; asks for the next row ahead."""
    width, full = weight.shape[1], weight.shape[1] // LANES * LANES
    for i in range(start, stop):
        r, ahead = ids[i], ids[min(i + 1, stop - 1)]
        for c in range(0, full, LANES):
            ask_for(weight, ahead, c)
            store(weight, r, c, LANES, load(weight, r, c, LANES) + load(grad, i, c, LANES))
        if full < width:
            n = width - full
            store(weight, r, full, n, load(weight, r, full, n) + load(grad, i, full, n))
