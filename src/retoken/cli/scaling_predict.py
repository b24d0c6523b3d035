"""`retoken scaling predict`: what a setting gives, what a loss takes, the published numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from retoken.cli.options import as_json
from retoken.cli.scaling_options import check_level
from retoken.errors import ConfigError
from retoken.scaling import published
from retoken.scaling.gamma import FORMS, Form
from retoken.scaling.model import load
from retoken.scaling.predict import Estimate, Prediction, Setting, at_compute, for_loss


@dataclass(frozen=True, kw_only=True)
class ScalingPredict:
    """Say what (eta, rho, C) will give, or what must be built to reach a loss, from a fit; with intervals.

    Intervals are of the fitted law, given that it holds. With --published no fit is read: the paper's Tables
    6 and 7 and JTok's two lines are worked through.
    """

    fit: Annotated[Path | None, tyro.conf.Positional] = None
    """File of `retoken scaling fit --out`."""
    variant: str = "baseline"
    """What is attached: a variant of the fit."""
    eta: float = 0.0
    """Table parameters over N_c."""
    rho: float = 1.0
    """Rows used a token over rows owned, K / n_e."""
    compute: float | None = None
    """Training FLOPs C. Or give --loss."""
    loss: float | None = None
    """Loss to be reached, nats a token: the answer is C, N_c, D and the tables' parameters."""
    compute_params: float | None = None
    """N_c, with --compute; without it the best for the setting."""
    attached: bool = False
    """With --compute: N_c is the baseline's best, as the paper trains."""
    level: float = 0.95
    """Of the intervals."""
    interval: Literal["percentile", "bca"] = "percentile"
    """How intervals are taken from the bootstrap's draws."""
    published: bool = False
    """Work through the published numbers in place of a fit."""
    json: bool = False
    """Print one JSON object, numbers in full."""

    def run(self) -> int:
        """Predict and print; returns the exit code."""
        from retoken.cli import scaling_view

        check_level(self.level)
        if self.published == (self.fit is not None):
            raise ConfigError(
                f"fit is {str(self.fit or '')!r} and --published {self.published}; "
                "accepted: exactly one of the two"
            )
        if self.published:
            found = published_numbers()
            print(as_json(found)) if self.json else scaling_view.show_published(found)
            return 0
        prediction, warnings = self._predicted()
        if self.json:
            print(as_json(_as_dict(prediction) | {"fit_warnings": warnings}))
        else:
            scaling_view.show_prediction(prediction, warnings, self.level)
        return 0

    def _predicted(self) -> tuple[Prediction, list[str]]:
        if (self.compute is None) == (self.loss is None):
            raise ConfigError(
                f"--compute is {self.compute} and --loss {self.loss}; accepted: exactly one of the two"
            )
        assert self.fit is not None
        model = load(self.fit)
        setting = Setting(variant=self.variant, eta=self.eta, rho=self.rho)
        spans: dict[str, Any] = {"level": self.level, "kind": self.interval}
        if self.loss is not None:
            if self.compute_params is not None or self.attached:
                raise ConfigError("--compute-params or --attached with --loss; accepted: with --compute")
            return for_loss(model, setting, self.loss, **spans), list(model.warnings)
        assert self.compute is not None
        sizes: dict[str, Any] = {"params": self.compute_params, "attached": self.attached}
        return at_compute(model, setting, self.compute, **sizes, **spans), list(model.warnings)


def _as_dict(found: Prediction) -> dict[str, Any]:
    numbers = {
        name: {
            "value": each.value,
            "interval": [each.interval.low, each.interval.high] if each.interval else None,
        }
        for name in Prediction.__slots__
        if isinstance(each := getattr(found, name), Estimate)
    }
    one_run = [found.one_run.low, found.one_run.high] if found.one_run else None
    return {
        "setting": asdict(found.setting),
        **numbers,
        "one_run": one_run,
        "warnings": list(found.warnings),
    }


def published_numbers() -> dict[str, Any]:
    """Tables 6 and 7 by one exponent and one gamma of each form, what contradicts what, and JTok's lines."""
    cells = (*published.TABLE_6, *published.TABLE_7)
    fits: dict[Form, published.TableFit] = {form: published.fit_tables(form) for form in FORMS}
    return {
        "tables": [
            asdict(cell)
            | {
                "gamma": published.implied_gamma(cell),
                "exponent_range": published.exponent_range(cell),
                "predicted": {
                    form: {
                        "loss_reduction": each.loss_reduction(cell.eta, cell.rho),
                        "compute_ratio": each.compute_ratio(cell.eta, cell.rho),
                    }
                    for form, each in fits.items()
                },
            }
            for cell in cells
        ],
        "forms": {
            form: {
                "exponent": each.exponent,
                "worst_half_units": each.worst,
                "gain_at_50": float(each.gain.gain),
                "shape": float(each.gain.shape),
                "rho_s": float(each.gain.rho_s),
                "left_out_ratio_errors": published.left_out(form),
            }
            for form, each in fits.items()
        },
        "least_worst_half_units": published.least_miss(),
        "sizes": [
            asdict(size) | {"base_loss": published.implied_base_loss(size)} for size in published.SIZES
        ],
        "jtok": _jtok(),
    }


def _jtok() -> dict[str, Any]:
    base, mort = published.JTOK_BASELINE, published.JTOK_MORT
    low, high = published.JTOK_RANGE
    claimed = published.JTOK_CLAIM["compute_saved"]
    return {
        "lines": [asdict(line) | {"exponent": line.exponent} for line in (base, mort)],
        "claimed": published.JTOK_CLAIM,
        "implied": [asdict(published.jtok_saving(C)) for C in (low, (low * high) ** 0.5, high)],
        "gap_for_claim": published.gap_for_saving(claimed),
        "per_doubling": published.JTOK_PER_DOUBLING,
    }
