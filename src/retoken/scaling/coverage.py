"""Whether intervals hold what was planted, as often as they say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from retoken.scaling.bootstrap import Method, bootstrap
from retoken.scaling.fit import fit
from retoken.scaling.gamma import Form, Gain
from retoken.scaling.intervals import Kind
from retoken.scaling.laws import Chinchilla, Kaplan, Law
from retoken.scaling.model import Model, Quantity, model_of
from retoken.scaling.synthetic import Design, Noise, draw


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """Planted constants and the study that is to find them again."""

    name: str
    law: Law
    gains: Mapping[str, Gain]
    design: Design
    noise: Noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Coverage:
    """One quantity's intervals over many draws of the noise."""

    scenario: str
    method: str
    kind: str
    quantity: str
    planted: float
    draws: int
    undefined: int
    """Draws for which no interval was given."""
    held: int
    """Intervals with the planted value inside."""
    median: float
    """Of the estimates."""
    half_width: float
    """Median over the intervals, over the planted value's size."""

    @property
    def share(self) -> float:
        """Of the intervals given."""
        given = self.draws - self.undefined
        return self.held / given if given else float("nan")


def quantities(scenario: Scenario) -> dict[str, Quantity]:
    """What is looked for: constants, the frontier at ten times the largest budget, and every gain."""
    beyond, cost = 10 * max(scenario.design.budgets), scenario.design.cost
    found: dict[str, Quantity] = {}
    if isinstance(scenario.law, Kaplan):
        found |= {name: _field(name) for name in ("alpha", "beta")}
        found |= {f"log {name}": _log_field(name) for name in ("A", "B")}
    elif isinstance(scenario.law, Chinchilla):
        found |= {name: _field(name) for name in ("E", "a", "b")}
    found["frontier exponent"] = lambda law, gains: law.exponent(beyond, cost)
    found["log N_c* at 10 C"] = lambda law, gains: np.log(law.optimal_params(beyond, cost))
    found["L* at 10 C"] = lambda law, gains: law.optimal_loss(beyond, cost)
    for variant, pairs in scenario.design.attached.items():
        for eta, rho in pairs:
            found[f"1 + gamma eta, {variant} {eta:g} {rho:g}"] = _factor(variant, eta, rho)
    return found


def _field(name: str) -> Quantity:
    return lambda law, gains: getattr(law, name)


def _log_field(name: str) -> Quantity:
    return lambda law, gains: np.log(getattr(law, name))


def _factor(variant: str, eta: float, rho: float) -> Quantity:
    return lambda law, gains: gains[variant].factor(eta, rho)


def cover(
    scenario: Scenario,
    *,
    draws: int,
    resamples: int = 400,
    methods: tuple[Method, ...] = ("wild", "runs"),
    kinds: tuple[Kind, ...] = ("percentile", "bca"),
    level: float = 0.95,
) -> list[Coverage]:
    """Coverage of every quantity over draws of the noise.

    Args:
        scenario: What is planted.
        draws: Of the noise, seeds 0 and up.
        resamples: Of each bootstrap.
        methods: Of the bootstrap.
        kinds: Of interval.
        level: Nominal.
    """
    wanted = quantities(scenario)
    planted = {name: float(quantity(scenario.law, scenario.gains)) for name, quantity in wanted.items()}
    models = {method: list(_models(scenario, draws, resamples, method)) for method in methods}
    found = []
    for method in methods:
        for kind in kinds:
            for name, quantity in wanted.items():
                spans = [model.interval(quantity, level, kind) for model in models[method]]
                given = [span for span in spans if span is not None]
                widths = [(span.high - span.low) / 2 for span in given]
                found.append(
                    Coverage(
                        scenario=scenario.name,
                        method=method,
                        kind=kind,
                        quantity=name,
                        planted=planted[name],
                        draws=draws,
                        undefined=draws - len(given),
                        held=sum(span.holds(planted[name]) for span in given),
                        median=float(np.median([model.value(quantity) for model in models[method]])),
                        half_width=float(np.median(widths)) / abs(planted[name]) if widths else float("nan"),
                    )
                )
    return found


def _models(scenario: Scenario, draws: int, resamples: int, method: Method) -> Iterator[Model]:
    forms: dict[str, Form] = {name: gain.form for name, gain in scenario.gains.items()}
    for seed in range(draws):
        runs = draw(scenario.law, scenario.gains, scenario.design, scenario.noise, seed)
        fitted = fit(runs, scenario.law.NAME, forms)
        yield model_of(fitted, bootstrap(fitted, resamples, method=method, seed=seed), scenario.design.cost)
