"""`retoken scaling fit`: a law, gamma, intervals, and what the runs cannot tell."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from retoken.cli.options import as_json
from retoken.cli.scaling_options import FitOptions, check_level
from retoken.errors import ConfigError, DataError
from retoken.scaling.costs import over_convention, overhead
from retoken.scaling.etalaw import eta_laws
from retoken.scaling.fit import Fit
from retoken.scaling.heldout import Score, compare
from retoken.scaling.identify import condition, profile, seed_spread
from retoken.scaling.isocompute import Isocompute, isocompute
from retoken.scaling.laws import Kaplan
from retoken.scaling.model import Model, Quantity
from retoken.scaling.runs import levels


@dataclass(frozen=True, kw_only=True)
class ScalingFit(FitOptions):
    """Fit a scaling law and gamma to a table of runs: constants with intervals, forms compared by runs held
    out.

    What the runs cannot tell is said. The isocompute parabola is given beside the joint fit.
    """

    hold_out: int = 1
    """Largest budgets that laws and forms are compared on, fitted to the others; 0, or 1 of fewer than three
    budgets: no comparison."""
    level: float = 0.95
    """Of the intervals."""
    interval: Literal["percentile", "bca"] = "percentile"
    """How intervals are taken from the bootstrap's draws."""
    out: Path | None = None
    """File of the fit, which `retoken scaling predict` reads."""
    json: bool = False
    """Print one JSON object, numbers in full."""

    def run(self) -> int:
        """Fit and print; returns the exit code."""
        from retoken.cli import scaling_view

        check_level(self.level)
        fitted, model = self.fitted()
        found = summary(fitted, model, self.level, self.interval)
        found["isocompute"] = _isocompute(fitted, model)
        found["held_out"] = [_score(score) for score in self._scores(fitted)]
        if self.out:
            self._save(model)
        if self.json:
            print(as_json(found))
        else:
            scaling_view.show_fit(found)
        return 0

    def _scores(self, fitted: Fit) -> list[Score]:
        if self.hold_out < 0:
            raise ConfigError(f"--hold-out is {self.hold_out}; accepted: from 0")
        few = self.hold_out == 1 and fitted.runs.budgets.size < 3
        return compare(fitted.runs, self.hold_out) if self.hold_out and not few else []

    def _save(self, model: Model) -> None:
        assert self.out is not None
        try:
            model.save(self.out)
        except OSError as error:
            raise DataError(f"--out {self.out} cannot be written: {error.strerror}") from None


def summary(fitted: Fit, model: Model, level: float, kind: Literal["percentile", "bca"]) -> dict[str, Any]:
    """Everything about a fit, as JSON has it."""

    def estimate(quantity: Quantity) -> dict[str, Any]:
        span = model.interval(quantity, level, kind)
        return {"value": model.value(quantity), "interval": [span.low, span.high] if span else None}

    names = tuple(type(model.law).__slots__)
    middle = float(np.exp(np.log(fitted.runs.budgets).mean()))
    runs, law = fitted.runs, model.law
    return {
        "runs": _of_runs(fitted),
        "law": law.NAME,
        "constants": {name: estimate(_constant(name)) for name in names},
        "profiles": _profiles(fitted),
        "frontier": {
            "at": middle,
            "loss_exponent": estimate(lambda law, gains: law.exponent(middle, model.cost)),
            "size_exponent": estimate(lambda law, gains: size_exponent(law, middle, model)),
        },
        "gains": {name: _gain(fitted, model, name, estimate) for name in model.gains},
        "noise": model.noise,
        "seed_spread": _or_none(seed_spread(runs)),
        "huber_delta": fitted.delta,
        "other_minima": fitted.other_minima,
        "condition": _or_none(condition(fitted)),
        "level": level,
        "interval": kind,
        "draws": {"asked": model.asked, "settled": int(model.draws.shape[0]), "freedom": model.freedom},
        "flops": asdict(model.cost) | _flops(fitted),
        "warnings": list(model.warnings),
    }  # fmt: skip


def _of_runs(fitted: Fit) -> dict[str, Any]:
    runs = fitted.runs
    return {
        "count": len(runs),
        "backbone": str(runs.backbone[0]),
        "budgets": runs.budgets.tolist(),
        "sizes": int(np.unique(runs.compute_params).size),
        "seeds": int(np.unique(runs.seed).size),
        "left_out": list(fitted.left_out),
    }


def size_exponent(law: Any, C: float, model: Model) -> Any:
    """Local exponent of N_c* ~ C^y, the same at every C in both laws."""
    pair = (law.optimal_params(C * 2, model.cost), law.optimal_params(C, model.cost))
    return np.log(pair[0] / pair[1]) / math.log(2)


def _constant(name: str) -> Quantity:
    return lambda law, gains: getattr(law, name)


def _profiles(fitted: Fit) -> dict[str, Any]:
    found = [profile(fitted, name) for name in fitted.problem.coordinates.exponents]
    return {each.name: {"low": each.low, "high": each.high} for each in found}


def _gain(fitted: Fit, model: Model, variant: str, estimate: Any) -> dict[str, Any]:
    """gamma at every (eta, rho) that was run."""
    gain = model.gains[variant]
    ours = fitted.runs.of_variant(variant)
    pairs = sorted({(int(at), float(rho)) for at, rho in zip(levels(ours.eta), ours.rho, strict=True)})
    settings = []
    for number, rho in pairs:
        eta = float(np.exp(np.log(ours.eta[levels(ours.eta) == number]).mean()))
        settings.append(
            {
                "eta": eta, "rho": rho,
                "gamma": estimate(lambda law, gains, e=eta, r=rho: gains[variant].gamma(e, r)),
                "factor": estimate(lambda law, gains, e=eta, r=rho: gains[variant].factor(e, r)),
            }
        )  # fmt: skip
    laws = eta_laws(fitted.runs, variant)
    doublings = [
        {
            "compute_params": size,
            "tokens": tokens,
            "per_doubling": each.per_doubling,
            "r_squared": each.r_squared,
        }
        for (size, tokens), each in laws.items()
    ]
    numbers = {"gain": gain.gain, "shape": gain.shape, "rho_s": gain.rho_s}
    return {
        "form": gain.form,
        "at": gain.at,
        **{name: float(value) for name, value in numbers.items()},
        "settings": settings,
        "eta_laws": doublings,
    }


def _flops(fitted: Fit) -> dict[str, Any]:
    over = over_convention(fitted.runs)
    extra = {name: _or_none(overhead(fitted.runs, name)) for name in fitted.runs.variants}
    return {"counted_over_6nd": [float(over.min()), float(over.max())], "overhead": extra}


def _isocompute(fitted: Fit, model: Model) -> dict[str, Any] | str:
    """The parabola's exponents and lowest points; or why there are none."""
    try:
        found: Isocompute = isocompute(fitted.runs, model.cost)
    except DataError as error:
        return str(error)
    nadirs = [{key: _or_none(value) for key, value in asdict(each).items()} for each in found.nadirs]
    law = model.law
    for each in nadirs:
        each["joint_params"] = float(law.optimal_params(each["budget"], model.cost))
        each["joint_loss"] = float(law.optimal_loss(each["budget"], model.cost))
    return {
        "size_exponent": found.params_power[1],
        "loss_exponent": found.loss_power[1],
        "nadirs": nadirs,
        "note": "a power law, without an irreducible loss" if law.NAME != Kaplan.NAME else "",
    }


def _score(score: Score) -> dict[str, Any]:
    return {key: _or_none(value) for key, value in asdict(score).items()}


def _or_none(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
