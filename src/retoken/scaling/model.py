"""A fitted law to be carried away: constants, bootstrap draws, what it has seen; written as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retoken.errors import ConfigError, DataError
from retoken.scaling.bootstrap import Draws
from retoken.scaling.fit import Fit
from retoken.scaling.gamma import Gain
from retoken.scaling.intervals import Interval, Kind, interval
from retoken.scaling.laws import Array, Cost, Law, Number
from retoken.scaling.problem import Coordinates, Slot
from retoken.scaling.runs import Runs

FORMAT = 1
Quantity = Callable[[Law, Mapping[str, Gain]], Number]
"""Anything computed from a law and its gains; called with array fields for the draws."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Covered:
    """Lowest and highest of what was run: outside of it a prediction extrapolates."""

    budget: tuple[float, float]
    compute_params: tuple[float, float]
    tokens: tuple[float, float]
    eta: Mapping[str, tuple[float, float]]
    """By variant."""
    rho: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Model:
    """What predictions are made with."""

    coordinates: Coordinates
    z: Array
    """``[P]``."""
    draws: Array
    """``[S, P]``; S is 0 without a bootstrap."""
    asked: int
    """Draws asked for, of which S came to rest."""
    freedom: int
    """Seed groups less numbers fitted, of what has the fewest."""
    jackknife: Array
    """``[G, P]``."""
    noise: float
    """Standard deviation of one run's log loss about the law."""
    cost: Cost
    covered: Covered
    backbone: str
    warnings: tuple[str, ...] = field(default=())
    """What the fit cannot tell."""

    @property
    def law(self) -> Law:
        """Constants."""
        return self.coordinates.law_at(self.z)

    @property
    def gains(self) -> dict[str, Gain]:
        """gamma by variant."""
        return self.coordinates.gains_at(self.z)

    def gain(self, variant: str) -> Gain:
        """gamma of one variant.

        Raises:
            ConfigError: no such variant was fitted.
        """
        found = self.gains
        if variant not in found:
            names = ", ".join(found) or "none, only the baseline was fitted"
            raise ConfigError(f"variant is {variant!r}, which is not in the fit; accepted: {names}")
        return found[variant]

    def value(self, quantity: Quantity) -> float:
        """A quantity at the fitted point."""
        return float(quantity(self.law, self.gains))

    def drawn(self, quantity: Quantity) -> Array:
        """The same of every draw, ``[S]``."""
        return self._at(self.draws, quantity)

    def interval(self, quantity: Quantity, level: float = 0.95, kind: Kind = "percentile") -> Interval | None:
        """Its bootstrap interval; None where there is none to give."""
        if not self.draws.shape[0]:
            return None
        left_out = self._at(self.jackknife, quantity) if kind == "bca" else None
        drawn, point = self.drawn(quantity), self.value(quantity)
        return interval(
            drawn,
            asked=self.asked,
            freedom=self.freedom,
            level=level,
            kind=kind,
            point=point,
            left_out=left_out,
        )

    def _at(self, points: Array, quantity: Quantity) -> Array:
        law, gains = self.coordinates.law_at(points), self.coordinates.gains_at(points)
        with np.errstate(all="ignore"):
            found = np.asarray(quantity(law, gains), dtype=np.float64)
        return np.broadcast_to(found, (points.shape[0],))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        arrays = {name: getattr(self, name).tolist() for name in ("z", "draws", "jackknife")}
        return {
            "format_version": FORMAT,
            "type": "scaling_model",
            "backbone": self.backbone,
            "coordinates": asdict(self.coordinates),
            "asked": self.asked,
            "freedom": self.freedom,
            "noise": self.noise,
            "cost": asdict(self.cost),
            "covered": asdict(self.covered),
            "warnings": list(self.warnings),
            **arrays,
        }

    def save(self, path: Path) -> None:
        """Write it for `load`."""
        path.write_text(json.dumps(self.to_dict()), encoding="utf-8")


def model_of(fit: Fit, draws: Draws | None, cost: Cost, warnings: tuple[str, ...] = ()) -> Model:
    """What is carried away of a fit."""
    none = np.zeros((0, fit.problem.size))
    return Model(
        coordinates=fit.problem.coordinates,
        z=fit.z,
        draws=draws.z if draws else none,
        asked=draws.asked if draws else 0,
        freedom=draws.freedom if draws else 0,
        jackknife=draws.jackknife if draws else none,
        noise=fit.noise,
        cost=cost,
        covered=covered(fit.runs),
        backbone=str(fit.runs.backbone[0]),
        warnings=warnings,
    )


def covered(runs: Runs) -> Covered:
    """Ranges of what was run."""
    by_variant = {name: runs.of_variant(name) for name in runs.variants}
    return Covered(
        budget=_range(runs.budget),
        compute_params=_range(runs.compute_params),
        tokens=_range(runs.tokens),
        eta={name: _range(ours.eta) for name, ours in by_variant.items()},
        rho={name: _range(ours.rho) for name, ours in by_variant.items()},
    )


def _range(values: Array) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def load(path: Path) -> Model:
    """What `Model.save` wrote.

    Raises:
        DataError: missing, not such a file, or of another format.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not JSON"
        raise DataError(
            f"fit {path} cannot be read: {why}; accepted: a file of `retoken scaling fit --out`"
        ) from None
    if not isinstance(found, dict) or found.get("type") != "scaling_model":
        raise DataError(f"fit {path} is something else; accepted: a file of `retoken scaling fit --out`")
    if found.get("format_version") != FORMAT:
        raise DataError(f"fit {path} has format {found.get('format_version')!r}; accepted: {FORMAT}")
    try:
        return _model(found)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"fit {path} is damaged ({error}); accepted: a file as it was written") from None


def _model(found: Mapping[str, Any]) -> Model:
    where = found["coordinates"]
    slots = tuple(Slot(**{**slot, "names": tuple(slot["names"])}) for slot in where["slots"])
    coordinates = Coordinates(law=where["law"], slots=slots, center=tuple(where["center"]))
    size = len(coordinates.names)
    arrays = {
        name: np.array(found[name], dtype=np.float64).reshape(-1, size)
        for name in ("z", "draws", "jackknife")
    }
    if arrays["z"].shape[0] != 1:
        raise ValueError("z is not one point")
    ranges: dict[str, Any] = {
        name: {key: tuple(pair) for key, pair in value.items()} if isinstance(value, dict) else tuple(value)
        for name, value in found["covered"].items()
    }
    return Model(
        coordinates=coordinates,
        z=arrays["z"][0],
        draws=arrays["draws"],
        jackknife=arrays["jackknife"],
        asked=int(found["asked"]),
        freedom=int(found["freedom"]),
        noise=float(found["noise"]),
        cost=Cost(**found["cost"]),
        covered=Covered(**ranges),
        backbone=str(found["backbone"]),
        warnings=tuple(found["warnings"]),
    )
