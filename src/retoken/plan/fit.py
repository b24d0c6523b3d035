"""Fitting the time model's constants to measured steps, and checking them on steps held out."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from retoken.errors import DataError
from retoken.plan.clock import Machine, step_time
from retoken.plan.work import Work

NAME, HELD_OUT, SECONDS = "name", "held_out", "seconds"
COLUMNS = (NAME, HELD_OUT, SECONDS, *Work.columns())
"""Of a measurements file: what was run; 1 where it checks the fit, 0 where it makes it; median seconds of a
step; and its `Work`."""
_STARTS = (0.02, 0.5, 0.98)
_SIGNALS = {
    "flops": ("forward_flops", "backward_flops"),
    "memory_bandwidth": ("memory_bytes",),
    "link_bandwidth": ("waited_bytes", "forward_bytes", "backward_bytes"),
    "latency": ("waited_messages", "forward_messages", "backward_messages"),
    "host_bandwidth": ("host_bytes",),
    "overlap": ("forward_window", "backward_window"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One configuration that was run."""

    name: str
    """What it was."""
    held_out: bool
    """Whether it only checks the fit."""
    seconds: float
    """Median of a step."""
    work: Work
    """Of the busiest rank."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """Constants, and how far predictions are from what was measured."""

    machine: Machine
    """The fitted constants; those without a signal in the measurements are the ones that were given."""
    fitted: tuple[str, ...]
    """Names of the constants that were fitted."""
    errors: dict[str, float]
    """Prediction over measurement, less 1, by name: of the configurations that made the fit."""
    held_out: dict[str, float]
    """The same of those that did not."""

    @property
    def worst(self) -> float:
        """Largest relative error on the fitted ones."""
        return max(map(abs, self.errors.values()))

    @property
    def worst_held_out(self) -> float | None:
        """Largest relative error on those held out; None where none were."""
        return max(map(abs, self.held_out.values()), default=None)


def write(path: Path, measurements: Sequence[Measurement]) -> None:
    """A measurements file, `COLUMNS` in its first line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for each in measurements:
            row = {NAME: each.name, HELD_OUT: int(each.held_out), SECONDS: repr(each.seconds)}
            writer.writerow(row | {key: repr(value) for key, value in asdict(each.work).items()})


def read(path: Path) -> list[Measurement]:
    """What `write` wrote. More columns do no harm; of `Work` some may be missing: then they are the defaults.

    Raises:
        DataError: not such a file, or a number in it is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or "not a CSV file"
        raise DataError(f"measurements {path} cannot be read: {why}") from None
    missing = sorted({NAME, HELD_OUT, SECONDS} - set(lines[0] if lines else ()))
    if missing:
        raise DataError(f"measurements {path} have no column {missing[0]}; accepted: {', '.join(COLUMNS)}")
    return [_measurement(path, number, line) for number, line in enumerate(lines, 2)]


def _measurement(path: Path, number: int, line: dict[str, str]) -> Measurement:
    try:
        seconds = float(line[SECONDS])
        work = Work(**{key: float(line[key]) for key in Work.columns() if line.get(key)})
        if not all(math.isfinite(x) and x >= 0 for x in asdict(work).values()) or work.crowding == 0:
            raise ValueError("a negative or infinite number")
        if line[HELD_OUT] not in ("0", "1") or not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"{HELD_OUT} is {line[HELD_OUT]!r} and {SECONDS} {seconds}")
    except (ValueError, TypeError) as error:
        raise DataError(
            f"measurements {path}, line {number}: {error}; accepted: numbers from 0, {HELD_OUT} 0 or 1, "
            f"{SECONDS} above 0"
        ) from None
    return Measurement(name=line[NAME], held_out=line[HELD_OUT] == "1", seconds=seconds, work=work)


def fit(measurements: Sequence[Measurement], start: Machine) -> Fit:
    """Least squares on the logarithm of the step time, by Levenberg-Marquardt from several overlaps.

    A constant is fitted where the measurements that make the fit hold any of what it prices; the others stay
    as in `start`. The fixed part is always fitted.

    Raises:
        DataError: fewer configurations than constants to fit.
    """
    used = [each for each in measurements if not each.held_out]
    names = _with_signal(used)
    if len(used) < len(names):
        raise DataError(
            f"{len(used)} measurements that are not held out; accepted: at least {len(names)}, one for each "
            f"constant that they bear on ({', '.join(names)})"
        )
    tries = [_descend(used, names, machine) for machine in _starts(used, names, start)]
    best = min(tries, key=lambda machine: float(np.sum(_residuals(used, machine) ** 2)))
    off = {each.name: _error(each, best) for each in used}
    check = {each.name: _error(each, best) for each in measurements if each.held_out}
    return Fit(machine=best, fitted=names, errors=off, held_out=check)


def _with_signal(measurements: Sequence[Measurement]) -> tuple[str, ...]:
    def has(columns: tuple[str, ...]) -> bool:
        return any(getattr(each.work, column) for each in measurements for column in columns)

    return (*(name for name, columns in _SIGNALS.items() if has(columns)), "fixed")


def _starts(used: Sequence[Measurement], names: tuple[str, ...], given: Machine) -> list[Machine]:
    """The constants given, and rates at which each kind of work would take a third of the median step."""
    seconds = float(np.median([each.seconds for each in used]))
    guess = {}
    for name in set(names) - {"overlap", "fixed"}:
        amount = np.median(
            [sum(getattr(each.work, c) * each.work.crowding for c in _SIGNALS[name]) for each in used]
        )
        if amount > 0:
            guess[name] = seconds / 30 / amount if name == "latency" else 3 * amount / seconds
    fixed = {"fixed": max(given.fixed, seconds / 100)}
    bases = (replace(given, **fixed), replace(given, **guess, **fixed))
    overlaps = _STARTS if "overlap" in names else (given.overlap,)
    return [replace(base, overlap=overlap) for base in bases for overlap in overlaps]


def _descend(used: Sequence[Measurement], names: tuple[str, ...], machine: Machine) -> Machine:
    """Levenberg-Marquardt in coordinates that keep every constant where it may be."""
    point, damping = _to_point(machine, names), 1e-2
    here = _residuals(used, machine)
    for _ in range(200):
        slope = np.stack([_slope(used, names, machine, point, axis) for axis in range(len(names))], axis=1)
        normal = slope.T @ slope
        step = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-12), -slope.T @ here)
        moved = point + np.clip(step, -2, 2)
        there = _residuals(used, _to_machine(moved, names, machine))
        if there @ there < here @ here:
            done = here @ here - there @ there < 1e-15
            point, here, damping = moved, there, max(damping / 4, 1e-12)
            if done:
                break
        elif damping > 1e8:
            break
        else:
            damping *= 4
    return _to_machine(point, names, machine)


def _slope(
    used: Sequence[Measurement], names: tuple[str, ...], machine: Machine, point: np.ndarray, axis: int
) -> np.ndarray:
    nudge = np.zeros(len(names))
    nudge[axis] = 1e-5
    ahead, behind = (_residuals(used, _to_machine(point + sign * nudge, names, machine)) for sign in (1, -1))
    return (ahead - behind) / 2e-5


def _residuals(used: Sequence[Measurement], machine: Machine) -> np.ndarray:
    return np.array([math.log1p(_error(each, machine)) for each in used])


def _error(each: Measurement, machine: Machine) -> float:
    return step_time(each.work, machine).total / each.seconds - 1


def _to_point(machine: Machine, names: tuple[str, ...]) -> np.ndarray:
    """Logarithms; of the overlap the logit."""
    values = [min(max(getattr(machine, name), 1e-12), 1e30) for name in names]
    pairs = zip(names, values, strict=True)
    return np.array([_logit(value) if name == "overlap" else math.log(value) for name, value in pairs])


def _logit(value: float) -> float:
    inside = min(max(value, 1e-6), 1 - 1e-6)
    return math.log(inside / (1 - inside))


def _to_machine(point: np.ndarray, names: tuple[str, ...], machine: Machine) -> Machine:
    values = {
        name: 1 / (1 + math.exp(-min(max(x, -30), 30)))
        if name == "overlap"
        else math.exp(min(max(x, -60), 80))
        for name, x in zip(names, point, strict=True)
    }
    return replace(machine, **values)
