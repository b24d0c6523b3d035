"""Eq. 21 from sums: equal to the equation, and exact however the batch is cut."""

import pytest
import torch

from retoken import ops
from retoken.ops import naive
from retoken.testing import assert_close

T, E, K = 23, 5, 3


@pytest.fixture
def logits():
    return torch.randn(T, E, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def _load(logits, mask=None):
    return ops.router_load(logits, logits.topk(K, dim=-1).indices, mask)


def test_equals_the_equation(logits):
    ref, out = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    naive.balance_loss(ref, K).backward()
    loss = ops.balance_loss(_load(out), K)
    loss.backward()
    assert_close("loss", naive.balance_loss(logits, K), loss)
    assert_close("gradient", ref.grad, out.grad)


def test_counts_carry_no_gradient_and_are_exact(logits):
    load = _load(logits.requires_grad_())
    assert not load.count_E.requires_grad
    assert load.count_E.sum() == T * K
    assert load.tokens == T


def test_padding_is_left_out(logits):
    mask = torch.arange(T) % 4 != 0
    out = logits.clone().requires_grad_()
    masked = ops.balance_loss(_load(out, mask), K)
    masked.backward()
    assert_close("loss", naive.balance_loss(logits[mask], K), masked)
    assert torch.equal(out.grad[~mask], torch.zeros_like(out.grad[~mask]))


def test_nothing_but_padding_is_zero_and_finite(logits):
    loss = ops.balance_loss(_load(logits.requires_grad_(), torch.zeros(T, dtype=torch.bool)), K)
    loss.backward()
    assert loss == 0 and logits.grad.isfinite().all()


def test_batch_dimensions_are_flattened(logits):
    cut = logits[:22].view(2, 11, E)
    assert_close("loss", naive.balance_loss(logits[:22], K), ops.balance_loss(_load(cut), K))


@pytest.mark.parametrize("cuts", [(T,), (10, 13), (1, 20, 2), (8, 8, 7)])
@pytest.mark.parametrize("masked", [False, True])
def test_parts_add_up_to_the_whole(logits, cuts, masked):
    mask = torch.arange(T) % 3 != 0 if masked else torch.ones(T, dtype=torch.bool)
    whole = logits.clone().requires_grad_()
    total = _load(whole, mask)
    expected = ops.balance_loss(total, K)
    expected.backward()

    parts = logits.clone().requires_grad_()
    loads = [_load(x, keep) for x, keep in zip(parts.split(cuts), mask.split(cuts), strict=True)]
    summed = ops.RouterLoad(*(sum(x.detach() for x in field) for field in zip(*loads, strict=True)))
    losses = [ops.balance_loss(load, K, summed) for load in loads]
    torch.stack(losses).sum().backward()
    assert_close("summed loss", expected, torch.stack(losses).sum())
    assert_close("summed gradient", whole.grad, parts.grad)
