"""What a fit cannot tell, said in place of confident nonsense."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retoken.scaling.bootstrap import Draws
from retoken.scaling.descend import descend
from retoken.scaling.fit import Fit, names_at_bounds
from retoken.scaling.intervals import LEAST_SETTLED
from retoken.scaling.laws import Array, Cost, Kaplan
from retoken.scaling.problem import Slot
from retoken.scaling.runs import BASELINE, Runs, different

WORST_CONDITION = 1e3
"""Of the derivatives, columns of length 1: above it the losses hardly show some combination of constants."""
WIDEST_RATIO = 3.0
"""Upper over lower end of an exponent's interval, above which the exponent is called unknown."""
_CHI2 = 3.84
_MISFIT = 1.5
_LEAST_SHARE = 0.1
_CONFOUNDED = 0.95
_ALL_ROWS = "retoken"
"""The variant that has one row a token, so that its rho cannot be another."""
_OFF_BUDGET = 0.1
_PROFILE_REACH = np.log(10.0)
_PROFILE_STEPS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Where one exponent may lie, all else fitted anew: ends at which the cost has risen by chi^2's 95 %."""

    name: str
    low: float | None
    """None where the cost does not rise enough down to a tenth of the estimate."""
    high: float | None
    """The same up to ten times."""


def findings(fit: Fit, cost: Cost, draws: Draws | None = None) -> tuple[str, ...]:
    """One sentence a weakness; none where nothing was found."""
    runs = fit.runs
    found = [*_of_design(runs), *_of_budgets(runs, cost), *_of_optimum(fit, cost), *_of_terms(fit)]
    for slot in fit.problem.coordinates.slots:
        found += _of_gain(runs.of_variant(slot.variant), slot)
    return (*found, *_of_misfit(fit), *_of_fit(fit), *(_of_draws(fit, draws) if draws else ()))


def condition(fit: Fit) -> float:
    """Largest over smallest singular value of the derivatives, columns of length 1."""
    slope = fit.slope
    length = np.linalg.norm(slope, axis=0)
    if (length == 0).any():
        return float("inf")
    size = np.linalg.svd(slope / length, compute_uv=False)
    return float(size[0] / size[-1]) if size[-1] > 0 else float("inf")


def profile(fit: Fit, coordinate: str) -> Profile:
    """The profile of one logarithmic coordinate, such as "log_alpha", in the exponent's own units."""
    column = fit.problem.coordinates.names.index(coordinate)
    ends = [_profile_end(fit, column, sign) for sign in (-1.0, 1.0)]
    low, high = (None if end is None else float(np.exp(end)) for end in ends)
    return Profile(name=coordinate.removeprefix("log_"), low=low, high=high)


def _profile_end(fit: Fit, column: int, sign: float) -> float | None:
    """Walks out from the estimate, each fit starting from the last; the end by linear interpolation."""
    best = _cost_with(fit, fit.z, column)[0]
    wanted = 0.5 * _CHI2 * max(fit.noise, 1e-12) ** 2
    z, before, at = fit.z.copy(), 0.0, fit.z[column]
    for step in np.geomspace(0.01, _PROFILE_REACH, _PROFILE_STEPS):
        z[column] = fit.z[column] + sign * step
        cost, z = _cost_with(fit, z, column)
        rise = cost - best
        if rise >= wanted:
            share = (wanted - before) / (rise - before)
            return float(at + share * (z[column] - at))
        before, at = rise, float(z[column])
    return None


def _cost_with(fit: Fit, z: Array, column: int) -> tuple[float, Array]:
    low, high = (end.copy() for end in fit.problem.bounds)
    low[column] = high[column] = z[column]
    found = descend(
        fit.problem.evaluate, z[None], fit.problem.target, bounds=(low, high), delta=fit.delta, tries=60
    )
    return float(found.cost[0]), found.z[0]


def _of_design(runs: Runs) -> list[str]:
    base = runs.of_variant(BASELINE)
    if not len(base):
        return ["no runs of the baseline: the law is fitted to runs with tables, and gamma hangs in the air"]
    found = []
    if base.budgets.size < 3:
        found.append(f"{base.budgets.size} budgets: exponents come from too short a range; 3 or more tell")
    elif base.budgets[-1] < 5 * base.budgets[0]:
        ratio = base.budgets[-1] / base.budgets[0]
        found.append(f"budgets span a factor {ratio:.2g}: exponents need about 10")
    sizes = [np.unique(base.compute_params[base.budget == budget]).size for budget in base.budgets]
    if min(sizes) < 3:
        found.append(f"a budget has {min(sizes)} sizes: fewer than 3 cannot show a minimum")
    if np.unique(runs.seed).size < 2:
        found.append("one seed: what the law misses cannot be told from what seeds scatter")
    return found


def _of_budgets(runs: Runs, cost: Cost) -> list[str]:
    """Whether budgets are what the convention says that the runs cost."""
    base = runs.of_variant(BASELINE)
    off = base.budget / (cost.per_token(base.compute_params) * base.tokens)
    if not len(base) or max(off.max(), 1 / off.min()) < 1 + _OFF_BUDGET:
        return []
    used = "counted FLOPs" if cost.counted else "6 N_c D"
    return [f"budgets are {off.min():.2f} to {off.max():.2f} times {used}: they may be in other FLOPs"]


def _of_optimum(fit: Fit, cost: Cost) -> list[str]:
    base = fit.runs.of_variant(BASELINE)
    outside = 0
    for budget in base.budgets:
        sizes = base.compute_params[base.budget == budget]
        outside += not sizes.min() <= fit.law.optimal_params(budget, cost) <= sizes.max()
    if not outside:
        return []
    return [f"the best size of {outside} of {base.budgets.size} budgets lies outside the sizes run"]


def _of_terms(fit: Fit) -> list[str]:
    """Whether both the parameters' and the tokens' term are ever a sizeable part of the loss."""
    law, runs = fit.law, fit.runs
    if not isinstance(law, Kaplan):
        share = law.E / np.exp(fit.predicted)
        return (
            [f"E is {law.E:.2g}, below a hundredth of any loss: it is not seen"] if share.max() < 0.01 else []
        )
    share = law.model_share(runs.compute_params, runs.tokens)
    if share.max() < _LEAST_SHARE:
        return [f"parameters make at most {share.max():.0%} of the sum in Eq. 9: A and alpha are hardly seen"]
    if share.min() > 1 - _LEAST_SHARE:
        return [f"tokens make at most {1 - share.min():.0%} of the sum in Eq. 9: B and beta are hardly seen"]
    return []


def _of_gain(runs: Runs, slot: Slot) -> list[str]:
    name = slot.variant
    if different(runs.eta) < 2:
        found = [f"{name} has one eta: its gain is known there, no form of gamma can be told from another"]
    else:
        with np.errstate(invalid="ignore", divide="ignore"):  # one size: NaN, which is not confounded
            together = abs(np.corrcoef(np.log(runs.eta), np.log(runs.compute_params))[0, 1])
        found = []
        if together > _CONFOUNDED:
            found = [f"{name}'s eta changes only with N_c: a gain of eta looks like a gain of size"]
    if different(runs.rho) < 2 and name != _ALL_ROWS:
        found.append(f"{name} has one rho ({runs.rho[0]:.3g}): nothing is known of others")
    return found


def _of_fit(fit: Fit) -> list[str]:
    found = []
    if not fit.settled:
        found.append("the descent did not come to rest")
    if fit.at_bounds:
        found.append(f"at the edge of what is sought: {', '.join(fit.at_bounds)}")
    size = condition(fit)
    if size > WORST_CONDITION:
        found.append(
            f"condition number {size:.0f}, above {WORST_CONDITION:.0f}: some constants cannot be told apart"
        )
    for coordinate in fit.problem.coordinates.exponents:
        seen = profile(fit, coordinate)
        if seen.low is None or seen.high is None:
            found.append(f"{seen.name} could be ten times as large or small at nearly the same cost")
    return found


def seed_spread(runs: Runs) -> float:
    """Standard deviation of log loss between seeds of one setting, pooled; NaN with one seed everywhere."""
    rows = zip(runs.variant, runs.compute_params, runs.tokens, runs.eta, runs.rho, strict=True)
    settings: dict[tuple[object, ...], list[float]] = {}
    for row, loss in zip(rows, np.log(runs.loss), strict=True):
        settings.setdefault(row, []).append(float(loss))
    squares = sum(float(((np.array(each) - np.mean(each)) ** 2).sum()) for each in settings.values())
    freedom = sum(len(each) - 1 for each in settings.values())
    return float(np.sqrt(squares / freedom)) if freedom else float("nan")


def _of_misfit(fit: Fit) -> list[str]:
    seeds = seed_spread(fit.runs)
    if not fit.noise > _MISFIT * seeds:
        return []
    scatter = f"runs lie {fit.noise:.2%} off the law where seeds scatter by {seeds:.2%}"
    return [f"{scatter}: the law is not of their shape"]


def _of_draws(fit: Fit, draws: Draws) -> list[str]:
    found = []
    if draws.freedom < 1:
        found.append("no more seed groups than numbers fitted to them: no interval is given")
    if draws.settled < LEAST_SETTLED:
        found.append(
            f"{1 - draws.settled:.0%} of the bootstrap fits did not come to rest: no interval is given"
        )
    edges = set(names_at_bounds(fit.problem, draws.z, 0.05)) - set(fit.at_bounds) if draws.z.size else set()
    if edges:
        found.append(f"at the edge in more than 5 % of the bootstrap fits: {', '.join(sorted(edges))}")
    for coordinate in fit.problem.coordinates.exponents:
        column = fit.problem.coordinates.names.index(coordinate)
        low, high = np.quantile(draws.z[:, column], [0.025, 0.975]) if draws.z.shape[0] else (0.0, 0.0)
        if np.exp(high - low) > WIDEST_RATIO:
            name = coordinate.removeprefix("log_")
            found.append(f"{name} is between {np.exp(low):.2g} and {np.exp(high):.2g}: it is not known")
    return found
