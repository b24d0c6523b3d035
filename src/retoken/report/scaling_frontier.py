"""Loss against tokens at fixed FLOPs (Fig. 3), frontiers with and without tables (Fig. 4), and residuals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from retoken.compare.verdict import title
from retoken.report.curves import MARKERS, colour, order
from retoken.report.palette import LEVELS, ramp, stand_in
from retoken.report.svg import Panel, panel
from retoken.scaling.fit import Fit
from retoken.scaling.gamma import Gain
from retoken.scaling.laws import Law, Number
from retoken.scaling.model import Model
from retoken.scaling.predict import Setting
from retoken.scaling.runs import BASELINE, Runs

WIDTH, HEIGHT = 560, 380
_POINTS = 60
_SAME = 0.9
"""How far below the largest an eta may lie and be the same setting: n_e is a whole number."""


def isocompute_panel(fit: Fit, model: Model) -> Panel:
    """The baseline's U at each budget, the law's curves, and their lowest points (Fig. 3)."""
    base = fit.runs.of_variant(BASELINE)
    budgets = base.budgets
    inks = _inks(budgets.size)

    def draw(axes: Axes) -> None:
        for budget, ink in zip(budgets, inks, strict=True):
            ours = base.pick(base.budget == budget)
            sizes, tokens = _along(ours)
            axes.plot(tokens, model.law.loss(sizes, tokens), color=ink, lw=1.4)
            axes.plot(ours.tokens, ours.loss, "o", color=ink, markersize=4, label=f"{budget:.3g} FLOPs")
        span = np.geomspace(budgets.min(), budgets.max(), _POINTS)
        best = model.law.optimal_params(span, model.cost)
        axes.plot(model.cost.tokens(span, best), model.law.optimal_loss(span, model.cost), "--",
                  color=stand_in("muted"), lw=1.2, label="frontier")  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlabel("tokens")
        axes.set_ylabel("held-out loss, nats per token")
        axes.legend(frameon=False, fontsize=10)

    words = (
        "Held-out loss of the baseline against tokens, a curve a budget, with the law and its lowest points."
    )
    return panel("isocompute", "Isocompute curves of the baseline", words, draw, width=WIDTH, height=HEIGHT)


def _along(runs: Runs) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and tokens along one budget's runs, in between as the runs trade one for the other."""
    size, first = np.unique(runs.compute_params, return_index=True)
    fine = np.geomspace(size[0], size[-1], _POINTS)
    return fine, np.exp(np.interp(np.log(fine), np.log(size), np.log(runs.tokens[first])))


def _inks(count: int) -> list[str]:
    """Dark enough to be seen on either page."""
    levels = np.linspace(0.3, 0.85, max(count, 1)) * (LEVELS - 1)
    return [ramp("sequential")[round(level)] for level in levels]


@dataclass(frozen=True, kw_only=True, slots=True)
class Course:
    """A variant's largest eta, and the largest rho run with it, from budget to budget ``[B]``."""

    name: str
    budgets: np.ndarray
    eta: np.ndarray
    rho: np.ndarray
    loss: np.ndarray
    """Of the best size, mean over its seeds."""

    def setting(self, C: float) -> Setting:
        """At any budget. ReToken's eta falls as N_c grows, and n_e is a whole number."""
        if self.name == BASELINE:
            return Setting()
        at = np.log(C), np.log(self.budgets)
        eta, rho = (float(np.exp(np.interp(*at, np.log(values)))) for values in (self.eta, self.rho))
        return Setting(variant=self.name, eta=eta, rho=min(rho, 1.0))

    @property
    def label(self) -> str:
        """For the legend."""
        if self.name == BASELINE:
            return title(self.name)
        ends = sorted({f"{value:.3g}" for value in (self.eta.min(), self.eta.max())}, key=float)
        return f"{title(self.name)}, η {' to '.join(ends)}"


def course(runs: Runs, name: str) -> Course:
    """A variant's runs with the most tables at each budget."""
    ours, rows = runs.of_variant(name), []
    for budget in ours.budgets:
        here = ours.pick(ours.budget == budget)
        here = here.pick(here.eta >= _SAME * here.eta.max())
        here = here.pick(here.rho >= here.rho.max() - 1e-9)
        means = [
            (here.loss[here.compute_params == size].mean(), size) for size in np.unique(here.compute_params)
        ]
        loss, size = min(means)
        best = here.compute_params == size
        rows.append((budget, here.eta[best].mean(), here.rho[best].mean(), loss))
    budgets, eta, rho, loss = np.array(rows).T
    return Course(name=name, budgets=budgets, eta=eta, rho=rho, loss=loss)


def frontier_panel(fit: Fit, model: Model, level: float) -> Panel:
    """Best loss against FLOPs, baseline and variants, each variant at its largest eta and rho (Fig. 4)."""
    runs = fit.runs
    names = [name for name in (BASELINE, *model.gains) if (runs.variant == name).any()]
    courses = [course(runs, name) for name in names]
    span = np.geomspace(runs.budgets.min() / 1.2, runs.budgets.max() * 1.2, _POINTS)

    def draw(axes: Axes) -> None:
        for each in courses:
            ink = colour(names, each.name)
            found = [_on_frontier(model, each.setting(C), C, level) for C in span]
            axes.plot(span, [loss for loss, _ in found], color=ink, label=each.label)
            bands = np.array([(np.nan, np.nan) if ends is None else ends for _, ends in found])
            axes.fill_between(span, bands[:, 0], bands[:, 1], color=ink, alpha=0.18, linewidth=0)
            marker = MARKERS[order(names)[each.name] % len(MARKERS)]
            axes.plot(each.budgets, each.loss, marker, color=ink, markersize=5)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel("held-out loss, nats per token")
        axes.legend(frameon=False, fontsize=10)

    words = "Frontiers of baseline and variants against training FLOPs; points are a budget's best runs."
    return panel("frontier", "Frontiers with and without tables", words, draw, width=WIDTH, height=HEIGHT)


def _on_frontier(
    model: Model, setting: Setting, C: float, level: float
) -> tuple[float, tuple[float, float] | None]:
    def loss(law: Law, gains: Mapping[str, Gain]) -> Number:
        return law.with_factor(setting.factor(gains)).optimal_loss(C, model.cost)

    found = model.interval(loss, level)
    return model.value(loss), (found.low, found.high) if found else None


def residual_panel(fit: Fit) -> Panel:
    """Measured over predicted loss of every run against FLOPs."""
    names = [name for name in (BASELINE, *fit.gains) if (fit.runs.variant == name).any()]
    residuals = 100 * np.expm1(fit.residuals)

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=stand_in("muted"), lw=1)
        for name in names:
            ours = fit.runs.variant == name
            shift = 1 + 0.03 * (order(names)[name] - (len(names) - 1) / 2)
            marker, x = MARKERS[order(names)[name] % len(MARKERS)], fit.runs.budget[ours] * shift
            ink = colour(names, name)
            axes.plot(x, residuals[ours], marker, color=ink, markersize=4, label=title(name))
        axes.set_xscale("log")
        axes.set_xlabel("training FLOPs")
        axes.set_ylabel("measured over predicted loss, %")
        axes.legend(frameon=False, fontsize=10)

    words = f"Measured over predicted loss; the standard deviation is {100 * fit.noise:.2f} %."
    return panel("residuals", "Residuals of the law", words, draw, width=WIDTH, height=HEIGHT)
