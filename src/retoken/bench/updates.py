"""One table update by each optimizer, ready to be timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from retoken.optim import RowAdamW, RowWiseAdam

Turn = Callable[[], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A table and the rows a step touches."""

    vocab_size: int
    """V."""
    width: int
    """Numbers a token owns: E * D."""
    ids_R: Tensor
    """Touched rows, sorted, each once."""

    @property
    def numbers(self) -> int:
        """Numbers in the touched rows."""
        return len(self.ids_R) * self.width


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """An optimizer to be timed."""

    name: str
    """For people."""
    bytes_per_number: int
    """Bytes that its update of touched rows has to move: gradient read, weight and state read and written."""
    build: Callable[[Work], Turn]
    """Allocates everything and returns one step."""


def touched_rows(vocab_size: int, rows: int, seed: int = 0) -> Tensor:
    """[rows] sorted ids, each once, from anywhere in the table."""
    return torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed))[:rows].sort().values


def row_adamw(work: Work) -> Turn:
    """Ours."""
    return _by_rows(work, torch.float32, lambda p: RowAdamW([p]))


def row_adamw_bfloat16(work: Work) -> Turn:
    """Ours, bf16 rows and gradients, stochastic rounding, float32 state."""
    return _by_rows(work, torch.bfloat16, lambda p: RowAdamW([p]))


def row_wise(work: Work) -> Turn:
    """Ours, one scalar of state a row."""
    return _by_rows(work, torch.float32, lambda p: RowWiseAdam([p]))


def sparse_adam(work: Work) -> Turn:
    """torch.optim.SparseAdam, which moves touched rows only."""
    return _by_rows(work, torch.float32, lambda p: torch.optim.SparseAdam([p]))


def dense_adamw(work: Work) -> Turn:
    """torch.optim.AdamW, fused, on a gradient of the whole table's size."""
    parameter = nn.Parameter(torch.zeros(work.vocab_size, work.width))
    parameter.grad = torch.zeros_like(parameter).index_copy_(0, work.ids_R, _gradient(work, torch.float32))
    return torch.optim.AdamW([parameter], fused=True).step


def streamed_adamw(work: Work) -> Turn:
    """The bound: the same arithmetic on as many bytes, but one after the other, by torch's fused AdamW."""
    parameter = nn.Parameter(torch.zeros(len(work.ids_R), work.width))
    parameter.grad = _gradient(work, torch.float32)
    return torch.optim.AdamW([parameter], fused=True).step


def streamed_copy(work: Work) -> Turn:
    """Another bound: a copy that reads and writes as many bytes as AdamW moves, half of them each."""
    source, target = (torch.ones(work.numbers * ADAMW // 8) for _ in range(2))
    return lambda: target.copy_(source)


ADAMW = 28
"""Bytes a number: gradient 4, weight and two moments 4 read and 4 written."""
OURS = (
    Contender(name="RowAdamW", bytes_per_number=ADAMW, build=row_adamw),
    Contender(name="RowAdamW, bf16 rows", bytes_per_number=22, build=row_adamw_bfloat16),
    Contender(name="RowWiseAdam", bytes_per_number=12, build=row_wise),
)
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


def _by_rows(work: Work, dtype: torch.dtype, make: Callable[[nn.Parameter], torch.optim.Optimizer]) -> Turn:
    parameter = nn.Parameter(torch.zeros(work.vocab_size, work.width, dtype=dtype))
    parameter.grad = torch.sparse_coo_tensor(
        work.ids_R.unsqueeze(0),
        _gradient(work, dtype),
        parameter.shape,
        is_coalesced=True,
        check_invariants=True,
    )
    return make(parameter).step


def _gradient(work: Work, dtype: torch.dtype) -> Tensor:
    values = torch.randn(len(work.ids_R), work.width, generator=torch.Generator().manual_seed(1))
    return values.to(dtype)
