"""Loss as a function of parameters and tokens: Kaplan's form (Eq. 9) and Chinchilla's, its rival.

Fields may be floats or arrays of one shape (one entry a bootstrap draw); everything broadcasts. A budget buys
tokens at `Cost.per_token` FLOPs each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Number = Any
"""A float or an `Array`."""

PAPER_FLOPS = 6.0
"""FLOPs a parameter and token of training, by the convention C = 6 N_c D (Sec. 3.4)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a token costs to train on: `scale` * N_c ^ `power` FLOPs.

    The paper's convention is C = 6 N_c D. Counted FLOPs also hold the head and attention, which N_c does not
    have, so that a small model's power is below 1.
    """

    scale: float = PAPER_FLOPS
    power: float = 1.0
    counted: bool = False
    """Whether fitted to counted FLOPs, rather than the convention."""
    spread: float = 0.0
    """Largest relative error of the power law on the counted FLOPs."""

    def per_token(self, N_c: Number) -> Number:
        """FLOPs a token."""
        return self.scale * N_c**self.power

    def tokens(self, C: Number, N_c: Number) -> Number:
        """D that C FLOPs pay for."""
        return C / self.per_token(N_c)


PAPER_COST = Cost()


@dataclass(frozen=True, kw_only=True, slots=True)
class Kaplan:
    """[(A / N_c)^(alpha / beta) + B / D]^beta (Eq. 9)."""

    A: Number
    """Parameters at which an endless run has loss 1."""
    B: Number
    """Tokens at which an endlessly large model has loss 1."""
    alpha: Number
    """Exponent of parameters where tokens abound."""
    beta: Number
    """Exponent of tokens where parameters abound."""
    NAME: ClassVar[str] = "kaplan"

    def log_loss(self, N: Number, D: Number) -> Number:
        """Logarithm of the loss in nats a token; N parameters (N_eff with tables), D tokens."""
        model, data = self._terms(N, D)
        return self.beta * np.logaddexp(model, data)

    def loss(self, N: Number, D: Number) -> Number:
        """Nats a token."""
        return np.exp(self.log_loss(N, D))

    def _terms(self, N: Number, D: Number) -> tuple[Number, Number]:
        ratio = self.alpha / self.beta
        return ratio * (np.log(self.A) - np.log(N)), np.log(self.B) - np.log(D)

    def model_share(self, N: Number, D: Number) -> Number:
        """(A / N)^(alpha / beta) over the sum it is part of: 1 where parameters are what is short."""
        model, data = self._terms(N, D)
        return np.exp(model - np.logaddexp(model, data))

    def with_factor(self, factor: Number) -> Kaplan:
        """With N_eff = factor * N_c in N_c's place: A_MoRT = A / factor (below Eq. 12)."""
        return replace(self, A=self.A / factor)

    def optimal_params(self, C: Number, cost: Cost = PAPER_COST) -> Number:
        """N_c* that makes the loss at C FLOPs smallest; D* is what is left (Eq. 10)."""
        ratio, m = self.alpha / self.beta, cost.power
        log = np.log(ratio / m) + ratio * np.log(self.A) + np.log(C) - np.log(self.B * cost.scale)
        return np.exp(log / (ratio + m))

    def optimal_loss(self, C: Number, cost: Cost = PAPER_COST) -> Number:
        """L*(C), closed: Eq. 11 at the paper's cost, its like at any other power."""
        ratio = self.alpha / self.beta
        log_n = np.log(self.optimal_params(C, cost))
        return np.exp(self.beta * np.log1p(ratio / cost.power) + self.alpha * (np.log(self.A) - log_n))

    def compute_for(self, loss: Number, cost: Cost = PAPER_COST) -> Number:
        """C at which L*(C) is `loss`."""
        ratio, m = self.alpha / self.beta, cost.power
        log_n = np.log(self.A) + (self.beta * np.log1p(ratio / m) - np.log(loss)) / self.alpha
        log_c = (ratio + m) * log_n - np.log(ratio / m) - ratio * np.log(self.A)
        return np.exp(log_c + np.log(self.B * cost.scale))

    def exponent(self, C: Number, cost: Cost = PAPER_COST) -> Number:
        """x of L* ~ C^-x: alpha beta / (alpha + beta) at the paper's cost, whatever C."""
        return self.alpha * self.beta / (self.alpha + cost.power * self.beta) + 0 * C


@dataclass(frozen=True, kw_only=True, slots=True)
class Chinchilla:
    """E + A / N^a + B / D^b."""

    E: Number
    """Loss that no model gets below, nats a token."""
    A: Number
    B: Number
    a: Number
    """Exponent of parameters."""
    b: Number
    """Exponent of tokens."""
    NAME: ClassVar[str] = "chinchilla"

    def log_loss(self, N: Number, D: Number) -> Number:
        """Logarithm of the loss in nats a token; N parameters (N_eff with tables), D tokens."""
        return np.log(self.loss(N, D))

    def loss(self, N: Number, D: Number) -> Number:
        """Nats a token."""
        return self.E + self.A * np.exp(-self.a * np.log(N)) + self.B * np.exp(-self.b * np.log(D))

    def with_factor(self, factor: Number) -> Chinchilla:
        """With N_eff = factor * N_c in N_c's place."""
        return replace(self, A=self.A * factor**-self.a)

    def optimal_params(self, C: Number, cost: Cost = PAPER_COST) -> Number:
        """N_c* that makes the loss at C FLOPs smallest."""
        m = cost.power
        log = np.log(self.a * self.A / (m * self.b * self.B)) + self.b * np.log(C / cost.scale)
        return np.exp(log / (self.a + m * self.b))

    def optimal_loss(self, C: Number, cost: Cost = PAPER_COST) -> Number:
        """L*(C), closed."""
        N = self.optimal_params(C, cost)
        return self.loss(N, cost.tokens(C, N))

    def compute_for(self, loss: Number, cost: Cost = PAPER_COST) -> Number:
        """C at which L*(C) is `loss`; infinite where `loss` is E or less."""
        power = self.a * self.b / (self.a + cost.power * self.b)
        above = np.maximum(np.asarray(loss) - self.E, 0.0)
        with np.errstate(divide="ignore"):
            return np.exp((np.log(self.optimal_loss(1.0, cost) - self.E) - np.log(above)) / power)

    def exponent(self, C: Number, cost: Cost = PAPER_COST) -> Number:
        """Local x of L* ~ C^-x, which falls to 0 as L* nears E."""
        best = self.optimal_loss(C, cost)
        return self.a * self.b / (self.a + cost.power * self.b) * (1 - self.E / best)


Law = Kaplan | Chinchilla
LAWS: dict[str, type[Kaplan] | type[Chinchilla]] = {law.NAME: law for law in (Kaplan, Chinchilla)}
