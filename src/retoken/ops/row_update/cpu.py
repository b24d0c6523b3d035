"""From tensors to the compiled kernels: the same memory as arrays, rows divided among torch's threads."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retoken.ops.row_update.jobs import AdamRows, DecayRows, Noise, Rates, RowWiseRows
from retoken.ops.row_update.threads import Work, divide

Job = AdamRows | RowWiseRows | DecayRows
BYTES_PER_CHUNK = 1 << 18
"""Of weights that a thread takes at a time; less is done sooner than another thread has started."""


def takes(job: Job) -> bool:
    """Whether there is a kernel for it: a CPU, contiguous float32 or bfloat16 with stochastic rounding."""
    weight = job.weight
    typed = weight.dtype == (torch.float32 if job.noise is None else torch.bfloat16)
    in_place = (getattr(job, name, None) for name in ("weight", "exp_avg", "exp_avg_sq", "mean_sq"))
    contiguous = all(x is None or x.is_contiguous() for x in in_place)
    return typed and weight.device.type == "cpu" and contiguous and weight.numel() > 0


def run(jobs: Sequence[Job], threads: int) -> None:
    """Update in place.

    Raises:
        IndexError: a row id is outside its table.
    """
    for job in jobs:
        _check_ids(job)
    divide([_work(job) for job in jobs], threads)


def _check_ids(job: Job) -> None:
    """The kernels write wherever they are told to."""
    if job.ids_R.numel() == 0:
        return
    low, high = (int(x) for x in job.ids_R.aminmax())
    if low < 0 or high >= job.weight.shape[0]:
        raise IndexError(f"row ids range over {low}..{high}; the table has rows 0..{job.weight.shape[0] - 1}")


def _work(job: Job) -> Work:
    update = {AdamRows: _adamw, RowWiseRows: _row_wise, DecayRows: _decay}[type(job)](job)
    return len(job.ids_R), max(1, BYTES_PER_CHUNK // job.weight[0].nbytes), update


def _adamw(job: AdamRows) -> Callable[[int, int], None]:
    from retoken.ops.row_update import kernel

    tensors = (job.weight, job.exp_avg, job.exp_avg_sq, job.grad.contiguous())
    return functools.partial(
        kernel.adamw, *(_rows(x, job) for x in tensors), *_row_factors(job), *_noise(job)
    )


def _row_wise(job: RowWiseRows) -> Callable[[int, int], None]:
    from retoken.ops.row_update import kernel

    weight, grad = _rows(job.weight, job), _rows(job.grad.contiguous(), job)
    mean_sq = job.mean_sq.view(job.mean_sq.shape[0], -1).numpy()
    return functools.partial(kernel.row_wise, weight, mean_sq, grad, *_row_factors(job), *_noise(job))


def _decay(job: DecayRows) -> Callable[[int, int], None]:
    from retoken.ops.row_update import kernel

    ids, settled = job.ids_R.contiguous().numpy(), job.settled_V.numpy()
    return functools.partial(kernel.decay, _rows(job.weight, job), ids, settled, job.log_decay, *_noise(job))


def _noise(job: Job) -> tuple[Any, ...]:
    """Key and place; float32 rows, which are not rounded, have none."""
    noise = job.noise or Noise(key=0)
    place = np.array([noise.first_row, noise.row_stride, noise.first_column], np.int64)
    return np.uint64(noise.key), place


def _row_factors(job: AdamRows | RowWiseRows) -> tuple[Any, ...]:
    touches = np.empty(0, np.int32) if job.touches_V is None else job.touches_V.numpy()
    settled = np.empty(0, np.float64) if job.settled_V is None else job.settled_V.numpy()
    lines, rates = job.rates.corrections_K2.numpy(), _numbers(job.rates)
    return job.ids_R.contiguous().numpy(), touches, lines, settled, job.rates.log_decay, rates


def _numbers(rates: Rates) -> np.ndarray:
    return np.array([rates.lr, rates.beta1, rates.beta2, rates.eps], np.float64)


def _rows(x: Tensor, job: Job) -> np.ndarray:
    """[V, N] over the tensor's own memory; bfloat16, which numpy lacks, as its bits."""
    rows = x.detach().view(x.shape[0], job.weight[0].numel())
    return rows.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else rows.numpy()
