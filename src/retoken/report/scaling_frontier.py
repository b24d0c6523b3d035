"""Loss against tokens at fixed FLOPs (Fig. 3), frontiers with and without tables (Fig. 4), and residuals."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter

from retoken.compare.verdict import title
from retoken.report.curves import MARKERS, colour, order
from retoken.report.palette import LEVELS, ramp, stand_in
from retoken.report.svg import Panel, panel
from retoken.scaling.fit import Fit
from retoken.scaling.model import Model
from retoken.scaling.predict import Setting
from retoken.scaling.runs import BASELINE, Runs

WIDTH, HEIGHT = 560, 380
_POINTS = 60


def isocompute_panel(fit: Fit, model: Model) -> Panel:
    """The baseline's U at each budget, the law's curves, and their lowest points (Fig. 3)."""
    base = fit.runs.of_variant(BASELINE)
    budgets = base.budgets
    inks = _inks(budgets.size)

    def draw(axes: Axes) -> None:
        for budget, ink in zip(budgets, inks, strict=True):
            ours = base.pick(base.budget == budget)
            sizes = np.geomspace(ours.compute_params.min() / 1.3, ours.compute_params.max() * 1.3, _POINTS)
            tokens = model.cost.tokens(budget, sizes)
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


def _inks(count: int) -> list[str]:
    """Dark enough to be seen on either page."""
    levels = np.linspace(0.3, 0.85, max(count, 1)) * (LEVELS - 1)
    return [ramp("sequential")[round(level)] for level in levels]


def frontier_panel(fit: Fit, model: Model, level: float) -> Panel:
    """Best loss against FLOPs, baseline and variants, each variant at its largest eta and rho (Fig. 4)."""
    runs = fit.runs
    names = [BASELINE, *model.gains]
    settings = {name: largest_setting(runs, name) for name in names}
    budgets = runs.budgets
    span = np.geomspace(budgets.min() / 1.2, budgets.max() * 1.2, _POINTS)

    def draw(axes: Axes) -> None:
        for name, setting in settings.items():
            ink = colour(names, name)
            label = title(name) + (f", η {setting.eta:.3g}, ρ {setting.rho:.3g}" if setting.eta else "")
            axes.plot(span, _frontier(model, setting, span), color=ink, label=label)
            band = [_band(model, setting, C, level) for C in span]
            if all(found is not None for found in band):
                low, high = np.array([found for found in band if found is not None]).T
                axes.fill_between(span, low, high, color=ink, alpha=0.18, linewidth=0)
            at, loss = _best(runs, name, setting)
            axes.plot(at, loss, MARKERS[order(names)[name] % len(MARKERS)], color=ink, markersize=5)
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


def largest_setting(runs: Runs, name: str) -> Setting:
    """A variant's largest eta, and the largest rho run with it."""
    if name == BASELINE:
        return Setting()
    ours = runs.of_variant(name)
    top = ours.pick(ours.eta > 0.95 * ours.eta.max())
    return Setting(variant=name, eta=float(np.exp(np.log(top.eta).mean())), rho=float(top.rho.max()))


def _frontier(model: Model, setting: Setting, compute: np.ndarray) -> np.ndarray:
    law = model.law.with_factor(setting.factor(model.gains))
    return np.asarray(law.optimal_loss(compute, model.cost))


def _band(model: Model, setting: Setting, C: float, level: float) -> tuple[float, float] | None:
    found = model.interval(
        lambda law, gains: law.with_factor(setting.factor(gains)).optimal_loss(C, model.cost), level
    )
    return (found.low, found.high) if found else None


def _best(runs: Runs, name: str, setting: Setting) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs and loss of the best setting a budget, mean over its seeds."""
    ours = runs.of_variant(name)
    if setting.eta:
        near = (ours.eta > 0.95 * setting.eta) & (np.abs(ours.rho - setting.rho) < 1e-9)
        ours = ours.pick(near)
    points = []
    for budget in ours.budgets:
        here = ours.pick(ours.budget == budget)
        means = [
            float(here.loss[here.compute_params == size].mean()) for size in np.unique(here.compute_params)
        ]
        points.append((float(budget), min(means)))
    return np.array([x for x, _ in points]), np.array([y for _, y in points])


def residual_panel(fit: Fit) -> Panel:
    """Measured over predicted loss of every run against FLOPs."""
    names = [BASELINE, *fit.gains]
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
