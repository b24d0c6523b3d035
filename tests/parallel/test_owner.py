"""What an owner mixes for others, and both gradients, are those of the mixture written down."""

import pytest
import torch

from retoken.ops import mix_rows
from retoken.parallel.owner import NOT_CHOSEN, Mixing
from retoken.testing import assert_close

TABLE, OWN, WIDTH, TOKENS = 6, 3, 7, 700
"""So many tokens that rows are compared with gradients in several parts."""


def drawn(dtype=torch.float64, table_dtype=None):
    """A table of six tokens, and which of their rows 700 tokens chose with which weight; some chose none."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(TABLE * OWN, WIDTH, generator=generator, dtype=dtype).to(table_dtype or dtype)
    token_N = torch.randint(TABLE - 1, (TOKENS,), generator=generator)
    weights_NE = torch.rand(TOKENS, OWN, generator=generator, dtype=dtype)
    weights_NE[torch.rand(TOKENS, OWN, generator=generator) < 0.4] = NOT_CHOSEN
    weights_NE[0] = NOT_CHOSEN
    weights_NE[1] = 0.0
    return table, token_N, weights_NE, torch.randn(TOKENS, WIDTH, generator=generator, dtype=dtype)


@pytest.mark.parametrize("table_dtype", [torch.float64, torch.bfloat16])
def test_mixture_and_gradients(table_dtype):
    dtype = torch.float64 if table_dtype == torch.float64 else torch.float32
    table, token_N, weights_NE, grad_ND = drawn(dtype, table_dtype)
    mixing = Mixing.of(weights_NE)
    row_P = token_N[mixing.token_P] * OWN + mixing.modulator_P

    wide = table.to(dtype, copy=True).requires_grad_()
    chosen = weights_NE != NOT_CHOSEN
    weights = torch.where(chosen, weights_NE, 0.0).requires_grad_()
    index = token_N.unsqueeze(1) * OWN + torch.arange(OWN)
    mixed = mix_rows(wide, index, weights)
    mixed.backward(grad_ND)

    assert_close("mixture", mixed, mixing.mix(table, row_P))
    gradient = mixing.row_gradient(grad_ND, token_N, TABLE)
    assert_close("rows", wide.grad, gradient.view(-1, WIDTH))
    assert gradient[-1].abs().sum() == 0, "nobody asked for the last token"
    got = mixing.weight_gradient(table, row_P, grad_ND)
    assert_close("weights", torch.where(chosen, weights.grad, 0.0), got)
    assert got[1].abs().min() > 0, "a chosen row whose weight is 0 has a gradient all the same"


def test_nothing_to_mix():
    for shape in ((0, OWN), (4, 0)):
        mixing = Mixing.of(torch.full(shape, NOT_CHOSEN))
        empty, grad = torch.zeros(0, dtype=torch.long), torch.ones(shape[0], WIDTH)
        table = torch.ones(TABLE * shape[1], WIDTH)
        assert torch.equal(mixing.mix(table, empty), torch.zeros(shape[0], WIDTH))
        place = torch.zeros(shape[0], dtype=torch.long)
        assert mixing.row_gradient(grad, place, 1).shape == (1, shape[1], WIDTH)
        assert mixing.weight_gradient(table, empty, grad).shape == shape
