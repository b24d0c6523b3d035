"""gamma(eta, rho): how much of a table parameter counts as a parameter of the backbone (Eq. 12).

The paper writes gamma(rho). Its own Table 6 has 1 + gamma eta = 1.20, 1.25, 1.29 at eta 30, 50, 80 and rho 1,
which is gamma .0067, .0050, .0036: gamma falls as eta grows. So the gain gamma * eta has several forms here,
all written as the gain `at` one eta and rho 1, times a shape of eta that is 1 there:

    constant     eta / at                                              what Eq. 12 says
    power        (eta / at)^q
    saturating   eta (at + s) / (at (eta + s))                         bounded
    log          log(1 + eta / s) / log(1 + at / s)                    linear at first, a constant a doubling
    later

times rho (1 + r) / (rho + r): r 0 is no dependence on rho, r large is gamma in proportion to it, r below 0
is fewer rows being better. Table 7's steps (.11 % from rho .3 to .6, .04 % from .6 to 1) bend more than a
power of rho can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from retoken.scaling.laws import Array, Number

Form = Literal["constant", "power", "saturating", "log"]
FORMS: tuple[Form, ...] = get_args(Form)
LEAST_FACTOR = 1e-3
"""1 + gamma eta is held from below, so that a step of a fit to nonsense has a finite loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """A fitted gamma. Numbers may be arrays, one entry a bootstrap draw."""

    form: Form
    at: float
    """The eta that `gain` is given at."""
    gain: Number
    """gamma * eta at that eta and rho 1. Negative where tables hurt."""
    shape: Number = 0.0
    """q of "power"; log s of "saturating" and "log"; nothing of "constant"."""
    rho_s: Number = 0.0
    """r of the dependence on rho; 0 where rho was not varied."""

    def extra(self, eta: Number, rho: Number) -> Number:
        """gamma * eta: parameters gained over N_c."""
        eta, rho = np.asarray(eta, dtype=np.float64), np.asarray(rho, dtype=np.float64)
        here = eta > 0
        safe_eta, safe_rho = np.where(here, eta, self.at), np.where(rho > 0, rho, 1.0)
        found = self.gain * shape(self.form, safe_eta, self.at, self.shape)[0]
        found = found * rho_shape(safe_rho, self.rho_s)[0]
        return np.where(here, found, 0.0)

    def factor(self, eta: Number, rho: Number) -> Number:
        """N_eff / N_c = 1 + gamma eta (Eq. 12)."""
        return np.maximum(1 + self.extra(eta, rho), LEAST_FACTOR)

    def gamma(self, eta: Number, rho: Number) -> Number:
        """gamma itself; eta above 0."""
        return self.extra(eta, rho) / eta


def shape(form: Form, eta: Number, at: float, z: Number) -> tuple[Number, Number]:
    """The shape and its derivative by z, at eta above 0. Broadcasts."""
    if form == "constant":
        return eta / at + 0 * z, 0 * eta * z
    if form == "power":
        log = np.log(eta / at)
        found = np.exp(z * log)
        return found, found * log
    s = np.exp(z)
    if form == "saturating":
        found = eta * (at + s) / (at * (eta + s))
        return found, found * s * (1 / (at + s) - 1 / (eta + s))
    here, there = np.log1p(eta / s), np.log1p(at / s)
    return here / there, (here * at / (s + at) - there * eta / (s + eta)) / there**2


def rho_shape(rho: Number, r: Number) -> tuple[Number, Number]:
    """The dependence on rho and its derivative by r, at rho above 0. Broadcasts."""
    return rho * (1 + r) / (rho + r), rho * (rho - 1) / (rho + r) ** 2


def params_of(form: Form, *, with_rho: bool) -> tuple[str, ...]:
    """Names of what is fitted."""
    words = {"constant": (), "power": ("power",), "saturating": ("log_eta_s",), "log": ("log_eta_s",)}
    return ("gain", *words[form], *(("rho_s",) if with_rho else ()))


def bounds_of(form: Form, eta: Array, rho: Array, *, with_rho: bool) -> list[tuple[float, float]]:
    """Where each of `params_of` is sought; beyond these a form is another form."""
    scale = (float(np.log(eta.min() / 1000)), float(np.log(eta.max() * 1000)))
    ranges = {
        "gain": (-0.99, 1e4),
        "power": (-2.0, 3.0),
        "log_eta_s": scale,
        "rho_s": (-0.5 * float(rho.min()), 50.0),
    }
    return [ranges[name] for name in params_of(form, with_rho=with_rho)]
