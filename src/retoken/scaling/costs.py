"""Which FLOPs a budget is counted in, and which parameters a law is of: the paper's, or those counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from retoken.errors import ConfigError, DataError
from retoken.scaling.laws import PAPER_COST, Array, Cost
from retoken.scaling.runs import BASELINE, Runs, different

Convention = Literal["6nd", "counted"]
COUNTED_PARAMS = "N_c is counted FLOPs a token over 6, head and attention included, and eta is over it"
"""What a fit to `of_counted_params` must be read with."""


def cost_of(runs: Runs, convention: Convention) -> Cost:
    """What a token costs by a convention.

    "counted" is a power law of N_c through the baseline's counted FLOPs a token (least squares in
    logarithms); with one size it is in proportion to N_c.

    Raises:
        ConfigError: no such convention.
        DataError: no runs of the baseline to count.
    """
    if convention not in get_args(Convention):
        raise ConfigError(f"FLOPs are {convention!r}; accepted: {', '.join(get_args(Convention))}")
    if convention == "6nd":
        return PAPER_COST
    base = runs.of_variant(BASELINE)
    if not len(base):
        raise DataError(
            f"no runs of the variant {BASELINE!r} to take counted FLOPs from; accepted: at least 1"
        )
    x, y = np.log(base.compute_params), np.log(base.flops / base.tokens)
    power = 1.0
    if different(base.compute_params) > 1:
        power = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    scale = float(np.exp((y - power * x).mean()))
    off = np.expm1(np.log(scale) + power * x - y)
    return Cost(scale=scale, power=power, counted=True, spread=float(np.abs(off).max()))


def of_counted_params(runs: Runs) -> Runs:
    """The same runs, N and eta by what a token of the plain backbone was counted to take.

    N = F / 6, so that 6 N D is the baseline's counted FLOPs and no power law stands in between. Small
    backbones are mostly head, which N_c leaves out: exponents of N_c then say little of larger ones
    (Pearce and Song, "Reconciling Kaplan and Chinchilla Scaling Laws", 2024).

    Raises:
        DataError: a size without a run that has no tables.
    """
    plain = runs.pick(runs.table_params == 0)
    per_token = plain.flops / (6 * plain.tokens)
    counted = {float(n): float(f) for n, f in zip(plain.compute_params, per_token, strict=True)}
    missing = sorted({float(n) for n in runs.compute_params} - counted.keys())
    if missing:
        raise DataError(
            f"no run without tables at N_c {missing[0]:g} to count FLOPs of; accepted: one at every size"
        )
    params = np.array([counted[float(n)] for n in runs.compute_params], dtype=np.float64)
    return replace(runs, compute_params=params, eta=runs.table_params / params)


def over_convention(runs: Runs) -> Array:
    """Counted FLOPs over 6 N_c D, ``[R]``."""
    return runs.flops / (6 * runs.compute_params * runs.tokens)


def overhead(runs: Runs, variant: str) -> float:
    """A variant's counted FLOPs over the baseline's at the same N_c and tokens, less 1; median over pairs.

    NaN without a pair. Eq. 14 leaves it out: what it saves is over a baseline's C.
    """
    base = {key: flops for key, flops in _keyed(runs.of_variant(BASELINE))}
    pairs = [flops / base[key] for key, flops in _keyed(runs.of_variant(variant)) if key in base]
    return float(np.median(pairs)) - 1 if pairs else float("nan")


def _keyed(runs: Runs) -> list[tuple[tuple[float, float], float]]:
    return [
        ((float(n), float(d)), float(f))
        for n, d, f in zip(runs.compute_params, runs.tokens, runs.flops, strict=True)
    ]
