"""The paper's scaling equations, each on its own and in the paper's symbols: what every fast path is held
against.

Scalars in, a scalar out. N_c, N_n parameters; D tokens; C FLOPs; losses in nats a token.
"""

from __future__ import annotations

import math


def kaplan_loss(N_c: float, D: float, A: float, B: float, alpha: float, beta: float) -> float:
    """L(N_c, D) = [(A / N_c)^(alpha / beta) + B / D]^beta (Eq. 9)."""
    return ((A / N_c) ** (alpha / beta) + B / D) ** beta


def searched_loss(C: float, A: float, B: float, alpha: float, beta: float) -> float:
    """L*(C) = min of L(N_c, D) over N_c D = C / 6, by golden section in log N_c (Eq. 10)."""
    low, high, golden = 0.0, math.log(C / 6), (math.sqrt(5) - 1) / 2

    def loss(log_n: float) -> float:
        return kaplan_loss(math.exp(log_n), C / 6 / math.exp(log_n), A, B, alpha, beta)

    while high - low > 1e-9:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if loss(left) < loss(right) else (left, high)
    return loss((low + high) / 2)


def optimal_loss(C: float, A: float, B: float, alpha: float, beta: float) -> float:
    """(1 + alpha / beta)^beta (6 A B beta / alpha)^x C^-x with x = alpha beta / (alpha + beta) (Eq. 11)."""
    x = alpha * beta / (alpha + beta)
    return (1 + alpha / beta) ** beta * (6 * A * B * beta / alpha) ** x * C**-x


def effective_params(N_c: float, N_n: float, gamma: float) -> float:
    """N_eff = N_c + gamma N_n = N_c (1 + gamma eta) (Eq. 12)."""
    return N_c + gamma * N_n


def frontier_shift(gamma: float, eta: float, alpha: float, beta: float) -> float:
    """g(eta, rho) = (1 + gamma eta)^-x with x = alpha beta / (alpha + beta) (Eq. 13)."""
    return (1 + gamma * eta) ** (-alpha * beta / (alpha + beta))


def compute_to_match(C: float, gamma: float, eta: float) -> float:
    """C_MoRT = C / (1 + gamma eta), with which MoRT has the baseline's loss at C (Eq. 14)."""
    return C / (1 + gamma * eta)


def log_shift(loss: float, g: float) -> float:
    """log L*_MoRT = log L* + log g (Eq. 15)."""
    return math.log(loss) + math.log(g)


def chinchilla_loss(N: float, D: float, E: float, A: float, B: float, a: float, b: float) -> float:
    """E + A / N^a + B / D^b: the rival form, with a loss that no model gets below (Hoffmann et al. 2022)."""
    return E + A / N**a + B / D**b


def eta_law(eta: float, intercept: float, per_doubling: float) -> float:
    """L = intercept + per_doubling log2(eta): JTok's fit at fixed N_c, D and rho."""
    return intercept + per_doubling * math.log2(eta)
