"""How long a run will take on this machine: a few measured speeds, and what they say of other shapes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from retoken.errors import CheckpointError
from retoken.study.cell import Cell
from retoken.study.table import Row

TERMS = ("token", "layer", "flop", "attached layer", "row number")
"""What the seconds of a token are summed from: one for all, one a layer, one a counted FLOP, one a layer that
carries a table, and one a number of the rows a token reads (K d a layer)."""
FORWARD_SHARE = 1 / 3
"""Of a training step: the backward pass takes two products for each of the forward pass's."""
ENOUGH = 8
"""Finished runs of a backbone that suffice for a fit of their own."""
ASSUMED_FLOPS = 2e10
"""A core's speed where nothing was measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One measured speed."""

    backbone: str
    features: tuple[float, ...]
    """Of a token, by `TERMS`."""
    seconds: float
    """A token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Seconds a token by backbone, fitted to measured speeds, and the seconds a run takes besides."""

    origin: str
    """"assumed", "calibration" or "runs"."""
    seconds: Mapping[str, tuple[float, ...]]
    """{backbone: seconds of each of `TERMS`}."""
    start_seconds: float
    """Interpreter, libraries, data and model of one run."""
    points: int
    """Speeds measured."""
    worst: float
    """Largest relative error of the fit at a measured speed."""
    jobs: int
    """Runs at once while it was measured."""

    def token_seconds(self, cell: Cell) -> float:
        """Training seconds of one token."""
        return float(np.dot(self._terms(cell.backbone), features_of(cell)))

    def run_seconds(self, cell: Cell, eval_tokens: int) -> float:
        """A whole run: its start, its steps and its last evaluation."""
        training = self.token_seconds(cell)
        return self.start_seconds + training * (cell.tokens + FORWARD_SHARE * eval_tokens)

    def _terms(self, backbone: str) -> tuple[float, ...]:
        return self.seconds.get(backbone) or next(iter(self.seconds.values()))

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return {**asdict(self), "seconds": {key: list(value) for key, value in self.seconds.items()}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cost:
        """What `to_dict` wrote.

        Raises:
            CheckpointError: It is something else.
        """
        try:
            return cls(**{**values, "seconds": {k: tuple(v) for k, v in values["seconds"].items()}})
        except (TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"cost of a plan is not what a plan writes ({error})") from None


def assumed() -> Cost:
    """Without a measurement: so many FLOPs a second, and nothing else."""
    return Cost(
        origin="assumed",
        seconds={"dense": (0.0, 0.0, 1 / ASSUMED_FLOPS, 0.0, 1 / ASSUMED_FLOPS)},
        start_seconds=10.0,
        points=0,
        worst=0.0,
        jobs=1,
    )


def features_of(cell: Cell) -> tuple[float, ...]:
    """What a token of this run costs, by `TERMS`."""
    attached = cell.layers if cell.table_params else 0
    rows = cell.top_k * cell.hidden_size * attached
    return (1.0, float(cell.layers), cell.flops_per_token, float(attached), float(rows))


def fit_cost(points: Sequence[Point], *, origin: str, start_seconds: float, jobs: int) -> Cost:
    """Non-negative least squares of relative errors, for each backbone on its own."""
    seconds, worst = {}, 0.0
    for backbone in dict.fromkeys(point.backbone for point in points):
        own = [point for point in points if point.backbone == backbone]
        rows = np.array([point.features for point in own]) / np.array([[point.seconds] for point in own])
        terms = _non_negative(rows)
        worst = max(worst, float(np.abs(rows @ terms - 1).max()))
        seconds[backbone] = tuple(float(f"{term:.6g}") for term in terms)
    return Cost(
        origin=origin,
        seconds=seconds,
        start_seconds=round(start_seconds, 2),
        points=len(points),
        worst=round(worst, 4),
        jobs=jobs,
    )


def corrected(cost: Cost, rows: Sequence[Row], cells: Mapping[str, Cell], jobs: int) -> Cost:
    """The cost with what finished runs say: fitted anew to a backbone's runs where there are enough of them,
    with tables and without; multiplied by the median of measured over predicted where there are some."""
    points = points_of(rows, cells)
    if not points:
        return cost
    seconds = dict(cost.seconds)
    worst = 0.0
    for backbone in dict.fromkeys(point.backbone for point in points):
        own = [point for point in points if point.backbone == backbone]
        if len(own) >= ENOUGH and any(point.features[-1] for point in own):
            fitted = fit_cost(own, origin="runs", start_seconds=0, jobs=jobs)
            seconds[backbone], worst = fitted.seconds[backbone], max(worst, fitted.worst)
            continue
        terms = cost.seconds.get(backbone) or next(iter(cost.seconds.values()))
        ratios = [point.seconds / float(np.dot(terms, point.features)) for point in own]
        factor = float(np.median(ratios))
        seconds[backbone] = tuple(float(f"{term * factor:.6g}") for term in terms)
        worst = max(worst, *(abs(factor / ratio - 1) for ratio in ratios))
    return replace(cost, origin="runs", seconds=seconds, points=len(points), worst=round(worst, 4), jobs=jobs)


def points_of(rows: Iterable[Row], cells: Mapping[str, Cell]) -> list[Point]:
    """Speeds of finished runs."""
    return [
        Point(
            backbone=row.backbone,
            features=features_of(cells[row.id]),
            seconds=1 / row.tokens_per_second,
        )
        for row in rows
        if row.id in cells
    ]


def _non_negative(rows: np.ndarray) -> np.ndarray:
    """argmin |rows x - 1| over x >= 0, by trying every set of terms: there are five."""
    best, found = np.inf, np.zeros(rows.shape[1])
    for size in range(1, rows.shape[1] + 1):
        for chosen in itertools.combinations(range(rows.shape[1]), size):
            part = rows[:, list(chosen)]
            scale = np.abs(part).max(axis=0)
            if not scale.all():
                continue
            x, *_ = np.linalg.lstsq(part / scale, np.ones(len(rows)), rcond=None)
            error = float(np.square(part / scale @ x - 1).sum())
            if (x >= 0).all() and error < best - 1e-12:
                best, found = error, np.zeros(rows.shape[1])
                found[list(chosen)] = x / scale
    return found
