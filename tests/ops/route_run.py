"""The router's kernel against Eq. 3 in float64: on a GPU, or in Triton's interpreter.

A process of its own, as Triton decides at its import whether it interprets: run by test_triton.py under
TRITON_INTERPRET=1, and by `make test-gpu` where there is a GPU. Not collected by name. States and routers lie
inside larger buffers of NaN, results inside buffers of a value that no result has.
"""

import math

import pytest
import torch

from retoken.ops import naive, route
from retoken.ops.triton import route_tokens
from retoken.testing import kernel_device

DEVICE = kernel_device()
PAD, MARK = 17, -12345
CASES = [(1, 1, 1), (3, 5, 3), (3, 4, 1), (2, 7, 7), (2, 200, 5)]
"""(T, E, K)"""


def inside(values):
    """The values in the middle of a larger NaN-filled buffer."""
    buffer = torch.full((values.numel() + 2 * PAD,), math.nan, dtype=values.dtype, device=DEVICE)
    return buffer[PAD : PAD + values.numel()].view(values.shape).copy_(values)


@pytest.fixture(autouse=True)
def outputs(monkeypatch):
    """All that `torch.empty` gave, in larger buffers: nothing around it is written, nothing in it left."""
    made, empty = [], torch.empty

    def guarded(*shape, **kwargs):
        size = math.prod(shape)
        buffer = empty(size + 2 * PAD, **kwargs).fill_(MARK)
        made.append((buffer, size))
        return buffer[PAD : PAD + size].view(shape)

    monkeypatch.setattr(torch, "empty", guarded)
    yield made
    for buffer, size in made:
        around = torch.cat([buffer[:PAD], buffer[PAD + size :]])
        assert (around == MARK).all(), "written past the end"
        assert (buffer[PAD : PAD + size] != MARK).all(), "an element was left out"


def draw(tokens, modulators, width, dtype):
    """States and a router, rounded to a type."""
    chance = torch.Generator().manual_seed(tokens + width)
    shapes = ((tokens, width), (modulators, width))
    return [inside(torch.randn(shape, generator=chance).to(dtype)) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [1, 63, 1000, 3000])
@pytest.mark.parametrize(("tokens", "modulators", "top_k"), CASES)
@torch.no_grad()
def test_the_choice_and_its_weights(tokens, modulators, top_k, width, dtype, outputs):
    hidden, router = draw(tokens, modulators, width, dtype)
    logits, chosen, weights = route_tokens(hidden, router, top_k)
    assert len(outputs) == 3 and logits.dtype == weights.dtype == torch.float32
    wanted = naive.mort_logits(hidden.double(), router.double().T)
    torch.testing.assert_close(logits.double(), wanted, rtol=1e-5, atol=1e-5 * width**0.5)
    assert torch.equal(logits.gather(-1, chosen), logits.sort(-1, descending=True).values[:, :top_k])
    assert all(len(set(row.tolist())) == top_k for row in chosen)
    sigma = logits.double().gather(-1, chosen).sigmoid()
    torch.testing.assert_close(weights.double(), sigma / sigma.sum(-1, keepdim=True), rtol=1e-5, atol=1e-7)
    plain = route(hidden, router, top_k)
    torch.testing.assert_close(logits, plain.logits_TE, rtol=1e-4, atol=1e-4 * width**0.5)


@torch.no_grad()
def test_of_equal_logits_the_first_is_chosen_first():
    hidden, router = inside(torch.ones(2, 40)), inside(torch.ones(6, 40))
    router[3] += 1
    _, chosen, weights = route_tokens(hidden, router, 4)
    assert chosen.tolist() == [[3, 0, 1, 2]] * 2
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, device=DEVICE))


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@torch.no_grad()
def test_what_is_no_number_stays_in_range(value):
    """The rows that are then read are there, whatever becomes of the result."""
    hidden, router = draw(3, 5, 40, torch.float32)
    hidden[1, 7] = value
    _, chosen, weights = route_tokens(hidden, router, 2)
    assert chosen.min() >= 0 and chosen.max() < 5
    assert weights[[0, 2]].isfinite().all()


@torch.no_grad()
def test_no_tokens_and_other_strides():
    router = draw(1, 5, 40, torch.bfloat16)[1]
    none = route_tokens(torch.zeros(0, 40, device=DEVICE), router, 2)
    assert [tuple(x.shape) for x in none] == [(0, 5), (0, 2), (0, 2)]
    wide = torch.randn(4, 80, device=DEVICE)
    halves = route_tokens(wide[:, ::2], router, 2), route_tokens(wide[:, ::2].contiguous(), router, 2)
    assert all(torch.equal(a, b) for a, b in zip(*halves, strict=True))
