"""One table update by each optimizer, ready to be timed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retoken.ops.row_update import use_huge_pages
from retoken.ops.row_update.threads import divide
from retoken.optim import RowAdamW, RowWiseAdam

Step = Callable[[int], object]
"""Takes the number of the step, which chooses the rows."""
STEPS = 4
"""Steps of a turn, on other rows each as far as the table has them, so that caches hold none from before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A table and the rows that steps touch in turn."""

    vocab_size: int
    """V."""
    width: int
    """Numbers a token owns: E * D."""
    ids: tuple[Tensor, ...]
    """Touched rows, [R] each: sorted, each once, none in two of them."""

    @property
    def touched(self) -> int:
        """R, rows of a step."""
        return len(self.ids[0])

    @property
    def numbers(self) -> int:
        """Numbers in the touched rows of a step."""
        return self.touched * self.width


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """An optimizer to be timed."""

    name: str
    """For people."""
    bytes_per_number: int
    """Bytes that its update of touched rows has to move: gradient read, weight and state read and written."""
    build: Callable[[Work], Step]
    """Allocates everything and returns what does a step."""


def touched_rows(vocab_size: int, rows: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Up to `STEPS` disjoint sets of [rows] sorted ids from anywhere in the table."""
    drawn = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed))
    sets = min(STEPS, vocab_size // rows)
    return tuple(ids.sort().values for ids in drawn[: sets * rows].view(sets, rows))


def row_adamw(work: Work) -> Step:
    """Ours."""
    return _by_rows(work, torch.float32, lambda p: RowAdamW([p]))


def row_adamw_bfloat16(work: Work) -> Step:
    """Ours, bf16 rows and gradients, stochastic rounding, float32 state."""
    return _by_rows(work, torch.bfloat16, lambda p: RowAdamW([p]))


def row_wise(work: Work) -> Step:
    """Ours, one scalar of state a row."""
    return _by_rows(work, torch.float32, lambda p: RowWiseAdam([p]))


def sparse_adam(work: Work) -> Step:
    """torch.optim.SparseAdam, which moves touched rows only."""
    return _by_rows(work, torch.float32, lambda p: torch.optim.SparseAdam([p]))


def dense_adamw(work: Work) -> Step:
    """torch.optim.AdamW, fused, on a gradient of the whole table's size."""
    parameter = nn.Parameter(torch.zeros(work.vocab_size, work.width))
    gradient = _gradient(work, torch.float32)
    parameter.grad = torch.zeros_like(parameter).index_copy_(0, work.ids[0], gradient)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    return lambda _: optimizer.step()


def bare_addition(work: Work) -> Step:
    """What rows at these places take at least: their gradient is added to them."""
    from retoken.bench.addition import add_rows

    weight = torch.zeros(work.vocab_size, work.width)
    use_huge_pages(weight)
    gradients = [_gradient(work, torch.float32).numpy() for _ in work.ids]
    ids = [each.numpy() for each in work.ids]

    def add(step: int) -> None:
        at = step % len(ids)
        rows = functools.partial(add_rows, weight.numpy(), gradients[at], ids[at])
        divide([(work.touched, 64, rows)], torch.get_num_threads())

    return add


def streamed_adamw(work: Work) -> Step:
    """The bound: the same arithmetic on as many bytes, but one after the other, by torch's fused AdamW."""
    optimizers = []
    for _ in range(STEPS):
        parameter = nn.Parameter(torch.zeros(work.touched, work.width))
        parameter.grad = _gradient(work, torch.float32)
        optimizers.append(torch.optim.AdamW([parameter], fused=True))
    return lambda step: optimizers[step].step()


def streamed_copy(work: Work) -> Step:
    """Another bound: a copy that reads and writes as many bytes as AdamW moves, half of them each."""
    pairs = [[torch.ones(work.numbers * ADAMW // 8) for _ in range(2)] for _ in range(STEPS)]
    return lambda step: pairs[step][0].copy_(pairs[step][1])


ADAMW = 28
"""Bytes a number: gradient 4, weight and two moments 4 read and 4 written."""
OURS = (
    Contender(name="RowAdamW", bytes_per_number=ADAMW, build=row_adamw),
    Contender(name="RowAdamW, bf16 rows", bytes_per_number=22, build=row_adamw_bfloat16),
    Contender(name="RowWiseAdam", bytes_per_number=12, build=row_wise),
)
ADDITION = Contender(name="bare addition", bytes_per_number=12, build=bare_addition)
"""No optimizer: what the memory gives where rows are scattered so."""
PEERS = (
    Contender(name="torch AdamW, dense fused", bytes_per_number=ADAMW, build=dense_adamw),
    Contender(name="torch SparseAdam", bytes_per_number=ADAMW, build=sparse_adam),
)
STREAMS = (
    Contender(name="AdamW over consecutive rows", bytes_per_number=ADAMW, build=streamed_adamw),
    Contender(name="copy", bytes_per_number=ADAMW, build=streamed_copy),
)
FBGEMM = {
    "exact_row_wise_adagrad": ("FBGEMM TBE, row-wise Adagrad", 12),
    "exact_adagrad": ("FBGEMM TBE, Adagrad", 20),
}
"""{its optimizer: (name, bytes a number)}: on a CPU it has no Adam."""


def _by_rows(work: Work, dtype: torch.dtype, make: Callable[[nn.Parameter], torch.optim.Optimizer]) -> Step:
    parameter = nn.Parameter(torch.zeros(work.vocab_size, work.width, dtype=dtype))
    optimizer, shape = make(parameter), parameter.shape
    gradients = [
        torch.sparse_coo_tensor(
            ids.unsqueeze(0), _gradient(work, dtype), shape, is_coalesced=True, check_invariants=True
        )
        for ids in work.ids
    ]

    def move(step: int) -> None:
        parameter.grad = gradients[step % len(gradients)]
        optimizer.step()

    return move


def _gradient(work: Work, dtype: torch.dtype) -> Tensor:
    values = torch.randn(work.touched, work.width, generator=torch.Generator().manual_seed(1))
    return values.to(dtype)
