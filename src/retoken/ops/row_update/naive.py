"""The updates in plain torch, on any device: what the kernels are held against.

Adam: Kingma & Ba 2015, Alg. 1. Decoupled decay: Loshchilov & Hutter 2019, Alg. 2. Row-wise: RMSprop with one
second moment a row, as in FBGEMM's row-wise optimizers. Moments are lazy: a row's decay only in steps that
touch it. c1 = 1 / (1 - b1^n) and c2 = 1 / sqrt(1 - b2^n) take the start at zero out, n as `bias_corrections`
says.

Products are in the kernels' order and stochastic rounding takes the same bits, so that both differ by
roundings only: of torch's square root, which is not always the nearest, and of the row-wise mean, summed in
another order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from retoken.ops.row_update.jobs import AdamRows, DecayRows, Noise, RowWiseRows
from retoken.ops.row_update.noise import noise_bits, round_stochastically


@torch.no_grad()
def adamw(job: AdamRows) -> None:
    """m = b1 m + (1 - b1) g; v = b2 v + (1 - b2) g^2; w = decay w - lr c1 m / (sqrt(v) c2 + eps)."""
    rates, ids_R = job.rates, job.ids_R
    m, v = job.exp_avg.index_select(0, ids_R), job.exp_avg_sq.index_select(0, ids_R)
    g = job.grad.to(m.dtype)
    step_R, root_R = _step_and_root(job, m)
    m = m + (1 - rates.beta1) * (g - m)
    v = rates.beta2 * v + (1 - rates.beta2) * g * g
    w = _decayed(job.weight, ids_R, job.settled_V, rates.log_decay, m.dtype)
    w = w - step_R * m / (v.sqrt() * root_R + rates.eps)
    job.exp_avg.index_copy_(0, ids_R, m)
    job.exp_avg_sq.index_copy_(0, ids_R, v)
    _store(job.weight, ids_R, w, job.noise)


@torch.no_grad()
def row_wise(job: RowWiseRows) -> None:
    """v = b2 v + (1 - b2) mean(g^2), a scalar a row; w = decay w - lr c1 g / (sqrt(v) c2 + eps), b1 is 0."""
    rates, ids_R = job.rates, job.ids_R
    v = job.mean_sq.index_select(0, ids_R)
    g = job.grad.to(v.dtype)
    step_R, root_R = _step_and_root(job, v)
    v = rates.beta2 * v + (1 - rates.beta2) * g.square().mean(-1)
    w = _decayed(job.weight, ids_R, job.settled_V, rates.log_decay, v.dtype)
    w = w - (step_R / (v.sqrt() * root_R + rates.eps)).unsqueeze(-1) * g
    job.mean_sq.index_copy_(0, ids_R, v)
    _store(job.weight, ids_R, w, job.noise)


@torch.no_grad()
def decay(job: DecayRows) -> None:
    """w = exp(what is pending) w: (1 - lr_t wd) for each step t since the row's last decay."""
    pending_R = job.log_decay - job.settled_V.index_select(0, job.ids_R)
    ids_R = job.ids_R[pending_R != 0]
    arithmetic = torch.promote_types(job.weight.dtype, torch.float32)
    w = _decayed(job.weight, ids_R, job.settled_V, job.log_decay, arithmetic)
    _store(job.weight, ids_R, w, job.noise)


def _step_and_root(job: AdamRows | RowWiseRows, like: Tensor) -> tuple[Tensor, Tensor]:
    """lr with the first moment's correction, and the second's, [R, 1...] each; counts this touch."""
    lines = job.rates.corrections_K2.to(like.device)
    line_R = torch.zeros_like(job.ids_R)
    if job.touches_V is not None:
        before_R = job.touches_V.index_select(0, job.ids_R)
        job.touches_V.index_copy_(0, job.ids_R, before_R + 1)
        line_R = before_R.long().clamp(max=lines.shape[0] - 1)
    first_R, root_R = lines[line_R].unbind(1)
    return _per_row(job.rates.lr * first_R, like), _per_row(root_R, like)


def _decayed(
    weight: Tensor, ids_R: Tensor, settled_V: Tensor | None, log_decay: float, dtype: torch.dtype
) -> Tensor:
    """Rows of the weight in the arithmetic's type, with all decay up to `log_decay`, which is noted."""
    w = weight.index_select(0, ids_R).to(dtype)
    if settled_V is None:
        return w
    factor_R = (log_decay - settled_V.index_select(0, ids_R)).exp()
    settled_V.index_fill_(0, ids_R, log_decay)
    return _per_row(factor_R, w) * w


def _per_row(x_R: Tensor, like: Tensor) -> Tensor:
    return x_R.to(like.dtype).view(-1, *[1] * (like.dim() - 1))


def _store(weight: Tensor, ids_R: Tensor, w: Tensor, noise: Noise | None) -> None:
    if weight.dtype == torch.bfloat16 and noise is not None:
        w = round_stochastically(w, noise_bits(noise, ids_R, weight[0].numel()))
    weight.index_copy_(0, ids_R, w.to(weight.dtype))
