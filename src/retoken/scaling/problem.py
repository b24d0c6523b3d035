"""A fit's unknowns in coordinates without bounds that matter, and predictions with analytic derivatives.

Coordinates are taken about the middle of the runs (geometric means n0 of N_c and d0 of D), where the data
speak: A and B themselves lie orders of magnitude outside them and hang together with the exponents.

    Kaplan      log alpha, log beta, log of the model term at n0, log of the data term at d0
    Chinchilla  log E, log A / n0^a, log B / d0^b, log a, log b

then, a variant, the parameters of its gain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retoken.errors import ConfigError
from retoken.scaling.gamma import FORMS, LEAST_FACTOR, Form, Gain, bounds_of, params_of, rho_shape, shape
from retoken.scaling.laws import LAWS, Array, Chinchilla, Kaplan, Law, Number
from retoken.scaling.runs import BASELINE, Runs, different

_LAW_NAMES = {
    Kaplan.NAME: ("log_alpha", "log_beta", "log_model_term", "log_data_term"),
    Chinchilla.NAME: ("log_E", "log_A_term", "log_B_term", "log_a", "log_b"),
}
_EXPONENTS = {Kaplan.NAME: ("log_alpha", "log_beta"), Chinchilla.NAME: ("log_a", "log_b")}
_LAW_BOUNDS = {
    Kaplan.NAME: [(-6.0, 2.0), (-6.0, 2.0), (-60.0, 60.0), (-60.0, 60.0)],
    Chinchilla.NAME: [(-12.0, 5.0), (-15.0, 5.0), (-15.0, 5.0), (-6.0, 1.5), (-6.0, 1.5)],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """Where a variant's gain is among the coordinates."""

    variant: str
    form: Form
    at: float
    """Geometric mean of the variant's eta."""
    with_rho: bool
    first: int
    names: tuple[str, ...]

    @property
    def columns(self) -> slice:
        """Its coordinates."""
        return slice(self.first, self.first + len(self.names))


@dataclass(frozen=True, kw_only=True, slots=True)
class Coordinates:
    """What the numbers of a point mean."""

    law: str
    slots: tuple[Slot, ...]
    center: tuple[float, float]
    """log n0, log d0."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the P coordinates."""
        gains = (f"{slot.variant}.{name}" for slot in self.slots for name in slot.names)
        return (*_LAW_NAMES[self.law], *gains)

    @property
    def exponents(self) -> tuple[str, ...]:
        """Names of the coordinates that are logarithms of exponents."""
        return _EXPONENTS[self.law]

    def law_at(self, z: Array) -> Law:
        """The law at ``[P]`` or, with array fields, at ``[S, P]``."""
        n0, d0 = self.center
        if self.law == Kaplan.NAME:
            alpha, beta = np.exp(z[..., 0]), np.exp(z[..., 1])
            A = np.exp(n0 + z[..., 2] * beta / alpha)
            return Kaplan(A=A, B=np.exp(d0 + z[..., 3]), alpha=alpha, beta=beta)
        a, b = np.exp(z[..., 3]), np.exp(z[..., 4])
        A, B = np.exp(z[..., 1] + a * n0), np.exp(z[..., 2] + b * d0)
        return Chinchilla(E=np.exp(z[..., 0]), A=A, B=B, a=a, b=b)

    def gains_at(self, z: Array) -> dict[str, Gain]:
        """Every variant's gain at the same points."""
        return {slot.variant: _gain(slot, z[..., slot.columns]) for slot in self.slots}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Problem:
    """Runs and what is to be fitted to them."""

    coordinates: Coordinates
    log_n: Array
    """``[R]``, about n0."""
    log_d: Array
    """``[R]``, about d0."""
    eta: Array
    rho: Array
    which: npt.NDArray[np.int64]
    """``[R]``: index of the slot, -1 for the baseline."""
    target: Array
    """``[R]`` log loss."""
    bounds: tuple[Array, Array]
    """Lowest and highest ``[P]``."""

    @property
    def size(self) -> int:
        """P, how many numbers are fitted."""
        return self.bounds[0].size

    def evaluate(self, z: Array) -> tuple[Array, Array]:
        """Log losses ``[S, R]`` and derivatives ``[S, R, P]`` at points ``[S, P]``."""
        slope = np.zeros((z.shape[0], self.log_n.size, self.size))
        log_n = np.broadcast_to(self.log_n, slope.shape[:2]).copy()
        for number, slot in enumerate(self.coordinates.slots):
            rows = np.flatnonzero(self.which == number)
            log_factor, by_gain = _log_factor(slot, z[:, slot.columns], self.eta[rows], self.rho[rows])
            log_n[:, rows] += log_factor
            slope[:, rows, slot.columns] = by_gain
        curve = _kaplan if self.coordinates.law == Kaplan.NAME else _chinchilla
        value, by_law, by_n = curve(z, log_n, self.log_d)
        slope *= by_n[..., None]
        slope[..., : by_law.shape[-1]] = by_law
        return value, slope


def make_problem(runs: Runs, law: str, forms: Mapping[str, Form] | Form) -> Problem:
    """The fit of a law and of a gain for each variant with tables.

    Args:
        runs: Of one backbone; variants without tables other than the baseline are left out by `usable`.
        law: "kaplan" or "chinchilla".
        forms: One form for all, or by variant. A variant with one eta has "constant", whatever is asked:
            its shape cannot be seen.

    Raises:
        ConfigError: no such law or form.
    """
    if law not in LAWS:
        raise ConfigError(f"law is {law!r}; accepted: {', '.join(LAWS)}")
    slots = _slots(runs, forms, len(_LAW_NAMES[law]))
    n, d = np.log(runs.compute_params), np.log(runs.tokens)
    n0, d0 = float(n.mean()), float(d.mean())
    index = {slot.variant: number for number, slot in enumerate(slots)}
    bounds = list(_LAW_BOUNDS[law])
    for slot in slots:
        ours = runs.of_variant(slot.variant)
        bounds += bounds_of(slot.form, ours.eta, ours.rho, with_rho=slot.with_rho)
    return Problem(
        coordinates=Coordinates(law=law, slots=tuple(slots), center=(n0, d0)),
        log_n=n - n0,
        log_d=d - d0,
        eta=runs.eta,
        rho=runs.rho,
        which=np.array([index.get(str(name), -1) for name in runs.variant], dtype=np.int64),
        target=np.log(runs.loss),
        bounds=(np.array([low for low, _ in bounds]), np.array([high for _, high in bounds])),
    )


def usable(runs: Runs) -> Runs:
    """The baseline's runs and those with tables."""
    return runs.pick((runs.variant == BASELINE) | (runs.eta > 0))


def _slots(runs: Runs, forms: Mapping[str, Form] | Form, first: int) -> list[Slot]:
    slots = []
    for name in runs.variants:
        asked = forms if isinstance(forms, str) else forms.get(name, "constant")
        if asked not in FORMS:
            raise ConfigError(f"form of gamma is {asked!r}; accepted: {', '.join(FORMS)}")
        ours = runs.of_variant(name)
        form: Form = asked if different(ours.eta) > 1 else "constant"
        with_rho = different(ours.rho) > 1
        names = params_of(form, with_rho=with_rho)
        at = float(np.exp(np.log(ours.eta).mean()))
        slots.append(Slot(variant=name, form=form, at=at, with_rho=with_rho, first=first, names=names))
        first += len(names)
    return slots


def _gain(slot: Slot, z: Array) -> Gain:
    named: dict[str, Number] = {name: z[..., i] for i, name in enumerate(slot.names)}
    bend = named.get("power", named.get("log_eta_s", 0.0))
    rho_s = named.get("rho_s", 0.0)
    return Gain(form=slot.form, at=slot.at, gain=named["gain"], shape=bend, rho_s=rho_s)


def _log_factor(slot: Slot, z: Array, eta: Array, rho: Array) -> tuple[Array, Array]:
    """log(1 + gamma eta) ``[S, r]`` and its derivative by the slot's coordinates ``[S, r, p]``."""
    gain = z[:, :1]
    bent = slot.form != "constant"
    found, by_bend = shape(slot.form, eta, slot.at, z[:, 1:2] if bent else np.zeros_like(gain))
    scaled, by_rho_s = rho_shape(rho, z[:, -1:] if slot.with_rho else np.zeros_like(gain))
    factor = 1 + gain * found * scaled
    free = factor > LEAST_FACTOR
    parts = [found * scaled]
    if bent:
        parts.append(gain * by_bend * scaled)
    if slot.with_rho:
        parts.append(gain * found * by_rho_s)
    safe = np.maximum(factor, LEAST_FACTOR)
    return np.log(safe), np.stack(parts, axis=-1) * (free / safe)[..., None]


def _kaplan(z: Array, n: Array, d: Array) -> tuple[Array, Array, Array]:
    """Log loss, its derivatives by the four coordinates, and by log N."""
    alpha, beta = np.exp(z[:, 0:1]), np.exp(z[:, 1:2])
    ratio = alpha / beta
    model, data = z[:, 2:3] - ratio * n, z[:, 3:4] - d
    log_sum = np.logaddexp(model, data)
    share = np.exp(model - log_sum)
    by_ratio = beta * share * -n * ratio
    slopes = (by_ratio, beta * log_sum - by_ratio, beta * share, beta * (1 - share))
    return beta * log_sum, np.stack(slopes, axis=-1), -alpha * share


def _chinchilla(z: Array, n: Array, d: Array) -> tuple[Array, Array, Array]:
    """Log loss, its derivatives by the five coordinates, and by log N."""
    a, b = np.exp(z[:, 3:4]), np.exp(z[:, 4:5])
    logs: Sequence[Array] = (z[:, 0:1] + 0 * n, z[:, 1:2] - a * n, z[:, 2:3] - b * d)
    value = np.logaddexp(np.logaddexp(logs[0], logs[1]), logs[2])
    share = [np.exp(part - value) for part in logs]
    slopes = (*share, -share[1] * a * n, -share[2] * b * d)
    return value, np.stack(slopes, axis=-1), -a * share[1]
