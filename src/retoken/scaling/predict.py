"""What a fitted law gives for (eta, rho, C), and what must be built to reach a loss; with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from retoken.errors import ConfigError
from retoken.scaling.gamma import Gain
from retoken.scaling.intervals import Interval, Kind
from retoken.scaling.laws import Law, Number
from retoken.scaling.model import Model, Quantity
from retoken.scaling.runs import BASELINE

_FAR = 1.5
"""How far outside of what was run a prediction is called an extrapolation, as a factor."""
_VERY_FAR = 10.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number and where it lies."""

    value: float
    interval: Interval | None
    """Of the law, not of one run; None where the bootstrap cannot carry one, or the number is given."""
    given: bool = False
    """Whether it is asked for, not predicted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is asked about."""

    variant: str = BASELINE
    eta: float = 0.0
    rho: float = 1.0

    def factor(self, gains: Mapping[str, Gain]) -> Number:
        """N_eff / N_c (Eq. 12)."""
        return 1.0 if self.variant == BASELINE else gains[self.variant].factor(self.eta, self.rho)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Of one setting, at one budget."""

    setting: Setting
    compute: Estimate
    """FLOPs C."""
    compute_params: Estimate
    """N_c."""
    tokens: Estimate
    """D."""
    table_params: Estimate
    """N_n = eta N_c."""
    loss: Estimate
    """Nats a token."""
    one_run: Interval | None
    """Where the loss of a single run lies: the law's interval widened by the runs' scatter."""
    base_loss: Estimate
    """The baseline's at the same N_c and D, or on its own frontier where N_c is chosen."""
    reduction: Estimate
    """1 - loss / base loss: 1 - g on the frontier (Eq. 13)."""
    compute_ratio: Estimate
    """Baseline's frontier compute over C, at equal loss: Eq. 14 on the frontier."""
    factor: Estimate
    """1 + gamma eta."""
    warnings: tuple[str, ...]
    """Where it extrapolates."""


def at_compute(
    model: Model,
    setting: Setting,
    compute: float,
    *,
    params: float | None = None,
    attached: bool = False,
    level: float = 0.95,
    kind: Kind = "percentile",
) -> Prediction:
    """What a setting gives at a budget.

    Args:
        model: A fitted law.
        setting: Variant, eta, rho.
        compute: C, FLOPs.
        params: N_c; without it the best for the setting.
        attached: N_c is the best of the baseline, as the paper trains, in place of the setting's own best.
        level: Of the intervals.
        kind: Of the intervals.

    Raises:
        ConfigError: a number that is not accepted, or a variant that was not fitted.
    """
    _check(model, setting, compute=compute, params=params)
    if params is not None and attached:
        raise ConfigError("params are given with attached; accepted: one of the two")

    def size(law: Law, gains: Mapping[str, Gain]) -> Number:
        if params is not None:
            return params
        ours = law if attached else law.with_factor(setting.factor(gains))
        return ours.optimal_params(compute, model.cost)

    return _predict(model, setting, lambda law, gains: compute, size, params is None, level, kind)


def for_loss(
    model: Model, setting: Setting, loss: float, *, level: float = 0.95, kind: Kind = "percentile"
) -> Prediction:
    """What must be built and spent for a setting to reach a loss on its frontier.

    Args:
        model: A fitted law.
        setting: Variant, eta, rho.
        loss: Nats a token.
        level: Of the intervals.
        kind: Of the intervals.

    Raises:
        ConfigError: a number that is not accepted, a variant that was not fitted, or a loss that the law
            has no model for.
    """
    _check(model, setting, loss=loss)

    def compute(law: Law, gains: Mapping[str, Gain]) -> Number:
        return law.with_factor(setting.factor(gains)).compute_for(loss, model.cost)

    if not np.isfinite(model.value(compute)):
        least = getattr(model.law, "E", 0.0)
        raise ConfigError(
            f"loss is {loss:g}, which no model of this law reaches; accepted: above {least:.4g}"
        )

    def size(law: Law, gains: Mapping[str, Gain]) -> Number:
        return law.with_factor(setting.factor(gains)).optimal_params(compute(law, gains), model.cost)

    return _predict(model, setting, compute, size, True, level, kind)


def _predict(
    model: Model, setting: Setting, compute: Quantity, size: Quantity, chosen: bool, level: float, kind: Kind
) -> Prediction:
    cost = model.cost

    def tokens(law: Law, gains: Mapping[str, Gain]) -> Number:
        return cost.tokens(compute(law, gains), size(law, gains))

    def loss(law: Law, gains: Mapping[str, Gain]) -> Number:
        return law.with_factor(setting.factor(gains)).loss(size(law, gains), tokens(law, gains))

    def base(law: Law, gains: Mapping[str, Gain]) -> Number:
        if chosen:
            return law.optimal_loss(compute(law, gains), cost)
        return law.loss(size(law, gains), tokens(law, gains))

    def reduction(law: Law, gains: Mapping[str, Gain]) -> Number:
        return 1 - loss(law, gains) / base(law, gains)

    def ratio(law: Law, gains: Mapping[str, Gain]) -> Number:
        return law.compute_for(loss(law, gains), cost) / compute(law, gains)

    def estimate(quantity: Quantity) -> Estimate:
        value, found = model.value(quantity), model.interval(quantity, level, kind)
        given = found is not None and found.low == found.high == value
        return Estimate(value=value, interval=None if given else found, given=given)

    found = Prediction(
        setting=setting,
        compute=estimate(compute),
        compute_params=estimate(size),
        tokens=estimate(tokens),
        table_params=estimate(lambda law, gains: setting.eta * size(law, gains)),
        loss=estimate(loss),
        one_run=_one_run(model, loss, level),
        base_loss=estimate(base),
        reduction=estimate(reduction),
        compute_ratio=estimate(ratio),
        factor=estimate(lambda law, gains: setting.factor(gains)),
        warnings=(),
    )
    return _with_warnings(model, found)


def _one_run(model: Model, loss: Quantity, level: float) -> Interval | None:
    """The law's own spread and a run's scatter, taken as normal and independent in log loss."""
    mean = model.interval(loss, level)
    if mean is None:
        return None
    wide = model.interval(lambda law, gains: np.log(loss(law, gains)), level)
    assert wide is not None
    middle = float(np.log(model.value(loss)))
    scatter = float(ndtri((1 + level) / 2)) * model.noise
    low = middle - np.hypot(middle - wide.low, scatter)
    high = middle + np.hypot(wide.high - middle, scatter)
    return Interval(low=float(np.exp(low)), high=float(np.exp(high)), level=level)


def _check(model: Model, setting: Setting, **numbers: float | None) -> None:
    for name, value in numbers.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}; accepted: a finite number above 0")
    if setting.variant == BASELINE:
        if setting.eta != 0:
            raise ConfigError(f"eta is {setting.eta} of the {BASELINE}; accepted: 0, or another variant")
        return
    model.gain(setting.variant)
    if not (np.isfinite(setting.eta) and setting.eta > 0):
        raise ConfigError(f"eta is {setting.eta} of {setting.variant}; accepted: a finite number above 0")
    if not 0 < setting.rho <= 1:
        raise ConfigError(f"rho is {setting.rho}; accepted: above 0, at most 1")


def _with_warnings(model: Model, found: Prediction) -> Prediction:
    seen, asked = model.covered, found.setting
    ranges = {
        "C": (found.compute.value, seen.budget),
        "N_c": (found.compute_params.value, seen.compute_params),
        "D": (found.tokens.value, seen.tokens),
    }
    if asked.variant != BASELINE:
        ranges["eta"] = (asked.eta, seen.eta[asked.variant])
        ranges["rho"] = (asked.rho, seen.rho[asked.variant])
    said = [words for name, (value, run) in ranges.items() if (words := _outside(name, value, run))]
    return replace(found, warnings=tuple(said))


def _outside(name: str, value: float, run: tuple[float, float]) -> str:
    low, high = run
    off = max(low / value, value / high)
    if off <= _FAR:
        return ""
    far = "far " if off > _VERY_FAR else ""
    return (
        f"{name} = {value:.3g} is {far}outside of what was run, {low:.3g} to {high:.3g} (a factor {off:.2g})"
    )
