"""The paper's equations, each on its own and in the paper's symbols: what every fast path is held against.

One token at a time would be the paper to the letter; here x is a batch of T tokens (see docs/notation.md):
T tokens, D model width, V vocabulary, E = n_e modulators, K selected ones. Everything is differentiable
by plain autograd except the choice of the top K and the counts n_i.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def norm_l2(u: Tensor, eps: float) -> Tensor:
    """Norm(u) = u / (||u||_2 + eps) over the last dimension (below Eq. 1)."""
    return u / (torch.linalg.vector_norm(u, dim=-1, keepdim=True) + eps)


def norm_rms(u: Tensor, eps: float) -> Tensor:
    """The same times sqrt(D), so that an element is of size 1: the reading "rms" of Norm (below Eq. 1)."""
    return math.sqrt(u.shape[-1]) * norm_l2(u, eps)


NORMS = {"l2": norm_l2, "rms": norm_rms}


def retoken_gate(E_VD: Tensor, s_D: Tensor, x_T: Tensor, norm: str = "l2", eps: float = 1e-6) -> Tensor:
    """p = 1 + s * Norm(E[x]), [T, D] (Eq. 1)."""
    return 1 + s_D * NORMS[norm](E_VD[x_T], eps)


def retoken_increment(m_TD: Tensor, p_TD: Tensor) -> Tensor:
    """The gated MLP increment m * p, [T, D] (Eq. 2)."""
    return m_TD * p_TD


def mort_logits(h_TD: Tensor, R_DE: Tensor) -> Tensor:
    """Router logits g = h^T R, [T, E] (Eq. 3)."""
    return h_TD @ R_DE


def mort_weights(g_TE: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """G = TopK(g, K), [T, K], and w_i = sigmoid(g_i) / sum over G of sigmoid(g_j), [T, K] (below Eq. 3)."""
    G_TK = g_TE.topk(K, dim=-1).indices
    sigma_TK = torch.sigmoid(g_TE.gather(-1, G_TK))
    return G_TK, sigma_TK / sigma_TK.sum(-1, keepdim=True)


def mort_mix(E_VED: Tensor, x_T: Tensor, G_TK: Tensor, w_TK: Tensor) -> Tensor:
    """e = sum over i in G of w_i E_i[x], [T, D] (Eq. 4)."""
    rows_TKD = E_VED[x_T.unsqueeze(-1), G_TK]
    return (w_TK.unsqueeze(-1) * rows_TKD).sum(-2)


def mort_residual(e_TD: Tensor, s_D: Tensor, N_l: int, norm: str = "l2", eps: float = 1e-6) -> Tensor:
    """r = 1 / sqrt(2 N_l) * s * Norm(e), [T, D] (Eq. 5)."""
    return s_D * NORMS[norm](e_TD, eps) / math.sqrt(2 * N_l)


def mort_write_back(h_TD: Tensor, m_TD: Tensor, r_TD: Tensor) -> Tensor:
    """h + m + r, [T, D] (Eq. 6)."""
    return h_TD + m_TD + r_TD


def folded_gate(E_VD: Tensor, s_D: Tensor, norm: str = "l2", eps: float = 1e-6) -> Tensor:
    """P[x] = 1 + s * Norm(E[x]) for the whole vocabulary, [V, D] (Eq. 8)."""
    return 1 + s_D * NORMS[norm](E_VD, eps)


def delayed_injection(h_TD: list[Tensor], r_TD: list[Tensor], l_d: int) -> list[Tensor]:
    """h^{l + l_d} + r^l for every layer state h^l; r has l_d entries fewer than h (Eq. 16)."""
    return [h if i < l_d else h + r_TD[i - l_d] for i, h in enumerate(h_TD)]


def routing_probability(g_TE: Tensor) -> Tensor:
    """p_t^(i) of Eq. 21, [T, E]: sigmoid(g_i) over the sum of all n_e of them.

    The paper only says "routing probability in [0, 1]" and that p_i is about 1/n_e when balanced, which
    holds for the normalised sigmoid and not for the bare one.
    """
    sigma_TE = torch.sigmoid(g_TE)
    return sigma_TE / sigma_TE.sum(-1, keepdim=True)


def balance_loss(g_TE: Tensor, K: int) -> Tensor:
    """n_e / (T^2 K) * sum_i P_i n_i, a scalar; lambda is the caller's (Eq. 21)."""
    T, n_e = g_TE.shape
    G_TK = g_TE.topk(K, dim=-1).indices
    P_E = routing_probability(g_TE).sum(0)
    n_E = torch.nn.functional.one_hot(G_TK, n_e).sum((0, 1)).to(P_E.dtype)
    return n_e / (T**2 * K) * (P_E * n_E).sum()


def quantized_int8(u: Tensor) -> Tensor:
    """A row [D] as int8 steps of max |u| / 127, and back: off by at most half a step."""
    step = u.abs().max() / 127
    return u if step == 0 else torch.round(u / step).clamp(-127, 127) * step


def quantized_float8(u: Tensor) -> Tensor:
    """A row [D] stretched to e4m3's largest number 448, rounded to e4m3, and back."""
    step = u.abs().max() / 448
    return u if step == 0 else (u / step).to(torch.float8_e4m3fn).float() * step
