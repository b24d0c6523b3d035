"""Which FLOPs a budget is counted in: the paper's C = 6 N_c D, or those a run really took."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from retoken.errors import ConfigError, DataError
from retoken.scaling.laws import PAPER_COST, Array, Cost
from retoken.scaling.runs import BASELINE, Runs, different

Convention = Literal["6nd", "counted"]


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
