"""What tables gain against eta, rho and size (Fig. 8), paired with the baseline of the same seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from retoken.compare.verdict import title
from retoken.report.curves import MARKERS, colour, order
from retoken.report.palette import stand_in
from retoken.report.scaling_frontier import HEIGHT, WIDTH
from retoken.report.svg import Panel, panel
from retoken.report.words import quantity
from retoken.scaling.fit import Fit
from retoken.scaling.model import Model
from retoken.scaling.pairs import Pairs, paired
from retoken.scaling.predict import Setting
from retoken.scaling.runs import BASELINE

_POINTS = 60


def eta_panel(fit: Fit, model: Model) -> Panel | None:
    """Loss reduction against eta, each variant at its largest rho (Fig. 8a); None where eta is one."""
    chosen = {name: _at_largest_rho(found) for name, found in _all_pairs(fit).items()}
    if not any(_varies(pairs.runs.eta) for pairs in chosen.values()):
        return None
    return _sensitivity(fit, model, chosen, "eta", "table parameters over the backbone's, η")


def rho_panel(fit: Fit, model: Model) -> Panel | None:
    """Loss reduction against rho, each variant at its largest eta (Fig. 8b); None where rho is one."""
    chosen = {name: _at_largest_eta(found) for name, found in _all_pairs(fit).items()}
    if not any(_varies(pairs.runs.rho) for pairs in chosen.values()):
        return None
    return _sensitivity(fit, model, chosen, "rho", "rows used over rows owned, ρ")


def size_panel(fit: Fit, model: Model) -> Panel | None:
    """Loss reduction against N_c, each size at its largest eta and rho (Fig. 8c); None without pairs."""
    chosen = {name: _largest_of_each_size(found) for name, found in _all_pairs(fit).items()}
    if not chosen:
        return None

    def curve(name: str, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        x = np.unique(pairs.runs.compute_params)
        per_size = [pairs.pick(pairs.runs.compute_params == size) for size in x]
        eta = [float(each.runs.eta.mean()) for each in per_size]
        rho = [float(each.runs.rho.mean()) for each in per_size]
        y = [_predicted(model, each, name, e, r) for each, e, r in zip(per_size, eta, rho, strict=True)]
        return x, np.array(y)

    words = "Loss reduction against the backbone's size, with the law's."
    return _panel(
        "gain-size",
        "Gain against size",
        words,
        fit,
        chosen,
        "compute_params",
        "parameters of the backbone",
        curve,
    )


def _all_pairs(fit: Fit) -> dict[str, Pairs]:
    found = {name: paired(fit.runs, name) for name in fit.gains}
    return {name: pairs for name, pairs in found.items() if len(pairs.runs)}


def _at_largest_rho(pairs: Pairs) -> Pairs:
    return pairs.pick(pairs.runs.rho >= pairs.runs.rho.max() - 1e-9)


def _at_largest_eta(pairs: Pairs) -> Pairs:
    return pairs.pick(pairs.runs.eta > 0.75 * pairs.runs.eta.max())


def _largest_of_each_size(pairs: Pairs) -> Pairs:
    kept = np.zeros(len(pairs.runs), dtype=np.bool_)
    for size in np.unique(pairs.runs.compute_params):
        here = pairs.runs.compute_params == size
        here &= pairs.runs.eta > 0.9 * pairs.runs.eta[here].max()
        kept |= here & (pairs.runs.rho >= pairs.runs.rho[here].max() - 1e-9)
    return pairs.pick(kept)


def _varies(values: np.ndarray) -> bool:
    return bool(values.max() > 1.05 * values.min())


def _predicted(model: Model, pairs: Pairs, name: str, eta: float, rho: float) -> float:
    """The law's mean reduction, per cent, at the pairs' N_c and tokens."""
    factor = Setting(variant=name, eta=eta, rho=rho).factor(model.gains)
    log_ratio = model.law.with_factor(factor).log_loss(
        pairs.base.compute_params, pairs.base.tokens
    ) - model.law.log_loss(pairs.base.compute_params, pairs.base.tokens)
    return float(100 * (1 - np.exp(log_ratio)).mean())


def _sensitivity(fit: Fit, model: Model, chosen: dict[str, Pairs], what: str, label: str) -> Panel:
    def curve(name: str, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
        values = getattr(pairs.runs, what)
        x = np.geomspace(
            values.min() / 1.1, min(values.max() * 1.1, 1.0 if what == "rho" else np.inf), _POINTS
        )
        rest = {"eta": float(np.median(pairs.runs.eta)), "rho": float(np.median(pairs.runs.rho))}
        y = [_predicted(model, pairs, name, **{**rest, what: float(value)}) for value in x]
        return x, np.array(y)

    letter = {"eta": "η", "rho": "ρ"}[what]
    words = f"Loss reduction against {letter}, points paired by seed, with the law's curve."
    return _panel(f"gain-{what}", f"Gain against {letter}", words, fit, chosen, what, label, curve)


def _panel(
    name: str, heading: str, words: str, fit: Fit, chosen: dict[str, Pairs], column: str, label: str,
    curve: Callable[[str, Pairs], tuple[np.ndarray, np.ndarray]],
) -> Panel:  # fmt: skip
    names = [BASELINE, *fit.gains]

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=stand_in("muted"), lw=1)
        for variant, pairs in chosen.items():
            ink, marker = colour(names, variant), MARKERS[order(names)[variant] % len(MARKERS)]
            x = getattr(pairs.runs, column)
            axes.plot(x, 100 * pairs.reduction, marker, color=ink, markersize=4, label=title(variant))
            axes.plot(*curve(variant, pairs), color=ink, lw=1.6)
        axes.set_xscale("log")
        ticks = _ticks(np.concatenate([getattr(pairs.runs, column) for pairs in chosen.values()]))
        axes.set_xticks(ticks)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: quantity(x) if x >= 1000 else f"{x:.3g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(label)
        axes.set_ylabel("loss reduction, %")
        axes.legend(frameon=False, fontsize=10)

    return panel(name, heading, words, draw, width=WIDTH, height=HEIGHT)


def _ticks(values: np.ndarray) -> np.ndarray:
    """Where runs are, at most six of them, none on top of another."""
    there = np.unique(values)
    kept = [there[0]]
    for value in there[1:]:
        if value > 1.15 * kept[-1]:
            kept.append(value)
    at = np.unique(np.linspace(0, len(kept) - 1, min(len(kept), 6)).round().astype(int))
    return np.array(kept)[at]
