"""Rows moved on a GPU, by plain operators, beside those that a CPU's compiled passes move."""

import pytest
import torch
from torch import nn

from retoken.optim import RowAdamW, RowWiseAdam

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

V, D, STEPS = 1000, 64, 20


def moved(make, device, dtype, **options):
    """A table after steps that touch a third of its rows each, and its state, on the CPU."""
    chance = torch.Generator().manual_seed(0)
    table = nn.Parameter(torch.randn(V, D, generator=chance).to(dtype).to(device))
    optimizer = make([table], lr=1e-2, **options)
    for _ in range(STEPS):
        ids = (torch.rand(V, generator=chance) < 0.3).nonzero()[:, 0]
        values = torch.randn(len(ids), D, generator=chance).to(dtype)
        table.grad = torch.sparse_coo_tensor(
            ids.unsqueeze(0).to(device), values.to(device), (V, D), is_coalesced=True, check_invariants=True
        )
        optimizer.step()
    optimizer.settle_all()
    return table.detach().cpu(), {name: value.cpu() for name, value in optimizer.state[table].items()}


@pytest.mark.parametrize("make", [RowAdamW, RowWiseAdam])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("correction", ["row", "global"])
def test_rows_and_their_state(make, decay, correction):
    options = {"weight_decay": decay, "bias_correction": correction}
    theirs, state = moved(make, "cpu", torch.float32, **options)
    ours, found = moved(make, "cuda", torch.float32, **options)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert state.keys() == found.keys()
    for name, value in state.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("make", [RowAdamW, RowWiseAdam])
def test_short_rows_are_rounded_by_the_same_bits(make):
    """One element in a thousand may lie so near the edge that a rounding of the arithmetic decides."""
    theirs, ours = moved(make, "cpu", torch.bfloat16)[0], moved(make, "cuda", torch.bfloat16)[0]
    assert (ours != theirs).float().mean() < 2e-2
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
