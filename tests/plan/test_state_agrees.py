"""Optimizer state as planned, against what the optimizers of rows keep."""

import pytest
import torch

from retoken.optim import RowAdamW, RowWiseAdam
from retoken.plan import Tables, memory
from retoken.rows import row_gradient

V, E, D, LAYERS = 131, 3, 8, 2


@pytest.mark.parametrize("modulators", [1, E])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "kind"), [("row_adamw", RowAdamW), ("row_wise", RowWiseAdam)])
def test_state_has_the_planned_bytes(name, kind, dtype, decay, modulators):
    shape = (V, D) if modulators == 1 else (V, modulators, D)
    weights = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for _ in range(LAYERS)]
    optimizer = kind(weights, weight_decay=decay)
    ids = torch.tensor([2, 5, 130])
    for weight in weights:
        weight.grad = row_gradient(weight, ids, torch.ones(3, *shape[1:], dtype=dtype))
    optimizer.step()
    tables = Tables(vocab_size=V, width=D, layers=LAYERS, modulators=modulators, row_bytes=dtype.itemsize)
    kept = [value for state in optimizer.state.values() for value in state.values()]
    # A handful of numbers for a whole table is not planned: steps taken, decay so far.
    found = sum(value.nbytes for value in kept if value.numel() > 1)
    assert found == memory.state_bytes(name, tables, V, modulators, decays=decay > 0)
    assert sum(value.nbytes for value in kept if value.numel() == 1) <= 16 * LAYERS
    whole = sum(weight.nbytes for weight in weights) + found
    planned = memory.bytes_per_parameter(tables, name, decays=decay > 0)
    assert whole / sum(weight.numel() for weight in weights) == pytest.approx(planned)
