"""Fits find what was planted, their fast parts agree with slow ones, and intervals hold as they say."""

import numpy as np
import pytest
from scipy.optimize import minimize

from retoken.errors import ConfigError, DataError
from retoken.scaling import naive
from retoken.scaling.bootstrap import bootstrap, seed_groups, stretched
from retoken.scaling.coverage import Scenario, cover
from retoken.scaling.descend import descend, huber
from retoken.scaling.fit import fit
from retoken.scaling.gamma import FORMS, Gain
from retoken.scaling.laws import LAWS, PAPER_COST, Law
from retoken.scaling.model import load, model_of
from retoken.scaling.planted import CHINCHILLA, KAPLAN, SATURATING, decade
from retoken.scaling.problem import make_problem
from retoken.scaling.runs import Runs, different, joined
from retoken.scaling.starts import starts
from retoken.scaling.synthetic import Noise, draw

GAINS = {"mort": SATURATING}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("law", LAWS)
def test_derivatives_and_values_in_coordinates(law: str, form: str, noisy: Runs) -> None:
    problem = make_problem(noisy, law, form)  # pyright: ignore[reportArgumentType]
    rng, little = np.random.default_rng(1), 1e-6
    z = np.clip(rng.normal(0.1, 0.3, (3, problem.size)), *problem.bounds)
    value, slope = problem.evaluate(z)
    for i in range(problem.size):
        nudge = little * np.eye(problem.size)[i]
        moved = (problem.evaluate(z + nudge)[0] - problem.evaluate(z - nudge)[0]) / (2 * little)
        assert slope[..., i] == pytest.approx(moved, abs=1e-7)
    found, gain = problem.coordinates.law_at(z[0]), problem.coordinates.gains_at(z[0])["mort"]
    factor = np.where(noisy.variant == "mort", gain.factor(noisy.eta, noisy.rho), 1.0)
    assert value[0] == pytest.approx(found.log_loss(noisy.compute_params * factor, noisy.tokens), rel=1e-9)


@pytest.mark.parametrize("law", [KAPLAN, CHINCHILLA], ids=["kaplan", "chinchilla"])
def test_planted_constants_come_back_where_there_is_no_noise(law: Law) -> None:
    runs = draw(law, GAINS, decade(), Noise(run=0, pair=0), 0)
    found = fit(runs, law.NAME, "saturating")
    for name in type(law).__slots__:
        assert getattr(found.law, name) == pytest.approx(getattr(law, name), rel=1e-4)
    gain = found.gains["mort"]
    for eta, rho in ((10.0, 1.0), (80.0, 0.3), (300.0, 0.6)):
        assert gain.factor(eta, rho) == pytest.approx(GAINS["mort"].factor(eta, rho), rel=1e-5)
    assert found.settled and not found.at_bounds


def test_the_fit_is_no_worse_than_a_general_search_in_the_papers_own_constants(noisy: Runs) -> None:
    base = noisy.of_variant("baseline")
    found = fit(base)

    def cost(z: np.ndarray) -> float:
        alpha, beta, log_a, log_b = z
        if min(alpha, beta) <= 0:
            return 1e9
        named = {"A": np.exp(log_a), "B": np.exp(log_b), "alpha": alpha, "beta": beta}
        pairs = zip(base.compute_params, base.tokens, strict=True)
        predicted = np.array([naive.kaplan_loss(N, D, **named) for N, D in pairs])
        return float(huber(np.log(predicted) - np.log(base.loss), found.delta).sum())

    ours = [found.law.alpha, found.law.beta, np.log(found.law.A), np.log(found.law.B)]  # pyright: ignore
    searched = minimize(
        cost, [0.13, 0.17, 24.0, 22.0], method="Nelder-Mead", options={"maxiter": 8000, "fatol": 1e-14}
    )
    assert cost(np.array(ours)) <= searched.fun * (1 + 1e-9)


@pytest.mark.parametrize("law", [KAPLAN, CHINCHILLA], ids=["kaplan", "chinchilla"])
def test_the_grids_best_start_is_near(law: Law) -> None:
    runs = draw(law, {}, decade(attached={}), Noise(run=0, pair=0), 0)
    problem = make_problem(runs, law.NAME, "power")
    best = starts(problem, 1, 1.0)
    assert np.abs(problem.evaluate(best)[0] - problem.target).max() < 0.03


def test_many_fits_at_once_are_the_fits_one_by_one(noisy: Runs) -> None:
    problem = make_problem(noisy, "kaplan", "power")
    rng = np.random.default_rng(0)
    targets = problem.target + 0.005 * rng.standard_normal((4, problem.target.size))
    first = np.tile(starts(problem, 1, 1.0), (4, 1))
    common = {"bounds": problem.bounds, "delta": 0.004}
    together = descend(problem.evaluate, first, targets, **common)
    alone = [descend(problem.evaluate, first[:1], target, **common).z[0] for target in targets]
    assert together.settled.all()
    assert together.z == pytest.approx(np.array(alone), abs=1e-5)


def test_a_weight_of_two_is_a_run_twice(noisy: Runs) -> None:
    base = noisy.of_variant("baseline")
    twice = np.zeros(len(base), dtype=np.int64)
    twice[:5] = 1
    doubled = joined([base, base.pick(np.flatnonzero(twice))])
    found = fit(doubled, delta=0.01)
    problem = make_problem(base, "kaplan", "power")
    z = starts(problem, 1, 1.0)
    weighted = descend(
        problem.evaluate, z, problem.target, bounds=problem.bounds, delta=0.01, weight=1.0 + twice
    )
    law = problem.coordinates.law_at(weighted.z[0])
    assert law.alpha == pytest.approx(found.law.alpha, rel=1e-4)  # pyright: ignore


def test_huber_shrugs_at_a_run_that_went_wrong(exact: Runs) -> None:
    base = exact.of_variant("baseline")
    broken = base.loss.copy()
    broken[3] *= 1.5
    found = fit(
        Runs(**{**{name: getattr(base, name) for name in Runs.__slots__}, "loss": broken}), delta=1e-3
    )
    assert found.law.alpha == pytest.approx(KAPLAN.alpha, rel=0.01)  # pyright: ignore


def test_tables_that_hurt_have_a_negative_gain() -> None:
    worse = {"mort": Gain(form="constant", at=50.0, gain=-0.2)}
    runs = draw(KAPLAN, worse, decade(), Noise(run=0, pair=0), 0)
    assert fit(runs, "kaplan", "constant").gains["mort"].extra(50.0, 1.0) == pytest.approx(-0.2, rel=1e-4)


def test_one_eta_and_one_rho_are_not_bent(noisy: Runs) -> None:
    one = noisy.pick((noisy.variant == "baseline") | ((noisy.eta == 50) & (noisy.rho == 1)))
    assert fit(one, "kaplan", "saturating").problem.coordinates.names[4:] == ("mort.gain",)
    assert different(np.array([30.0, 30.5, 50.0, 80.0])) == 3


def test_fits_that_cannot_be_made_are_refused(noisy: Runs) -> None:
    with pytest.raises(DataError, match="accepted: at least as many settings"):
        fit(noisy.pick(np.arange(6)))
    with pytest.raises(ConfigError, match="accepted: kaplan, chinchilla"):
        fit(noisy, "power")
    with pytest.raises(ConfigError, match="accepted: constant"):
        fit(noisy, "kaplan", "bent")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="accepted: from 20"):
        bootstrap(fit(noisy), 3)
    with pytest.raises(ConfigError, match="accepted: wild, runs"):
        bootstrap(fit(noisy), 30, method="all")  # pyright: ignore[reportArgumentType]


def test_a_seed_group_is_a_baseline_and_its_variants(noisy: Runs) -> None:
    groups = seed_groups(noisy)
    assert groups.max() + 1 == 5 * 7 * 2
    sizes = np.bincount(groups)
    assert sorted(set(sizes)) == [1, 6] and (sizes == 6).sum() == 10


def test_stretched_residuals_are_those_of_fits_without_the_group(noisy: Runs) -> None:
    """The linearised leave-one-out against fits that really leave the group out."""
    found = fit(noisy, delta=1.0)
    groups = seed_groups(found.runs)
    for group in (0, 5, 31):
        out = groups == group
        rest = fit(found.runs.pick(~out), delta=1.0, warm=found.z[None])
        law, gains = rest.law, rest.gains
        runs = found.runs.pick(out)
        factor = np.where(runs.variant == "mort", gains["mort"].factor(runs.eta, runs.rho), 1.0)
        left = np.log(runs.loss) - law.log_loss(runs.compute_params * factor, runs.tokens)
        assert stretched(found, groups)[out] == pytest.approx(left, abs=4e-4)


@pytest.mark.parametrize("method", ["wild", "runs"])
def test_the_same_seed_gives_the_same_draws(method: str, noisy: Runs) -> None:
    found = fit(noisy)
    first, again, other = (bootstrap(found, 40, method=method, seed=s) for s in (1, 1, 2))  # pyright: ignore
    assert np.array_equal(first.z, again.z)
    assert not np.array_equal(first.z, other.z)


def test_a_model_comes_back_from_its_file(noisy: Runs, tmp_path) -> None:
    found = fit(noisy)
    model = model_of(found, bootstrap(found, 40), PAPER_COST, ("a weakness",))
    model.save(tmp_path / "fit.json")
    back = load(tmp_path / "fit.json")
    assert back.to_dict() == model.to_dict()
    assert back.law == model.law
    assert back.interval(lambda law, gains: law.optimal_loss(1e15)) == model.interval(
        lambda law, gains: law.optimal_loss(1e15)
    )


@pytest.mark.parametrize(
    ("law", "name"), [(KAPLAN, "kaplan"), (CHINCHILLA, "chinchilla")], ids=["kaplan", "chinchilla"]
)
def test_intervals_hold_what_was_planted(law: Law, name: str) -> None:
    """A short form of studies/scaling/interval_coverage.py: 30 draws, all quantities together."""
    scenario = Scenario(name=name, law=law, gains=GAINS, design=decade(), noise=Noise())
    found = cover(scenario, draws=30, resamples=200, methods=("wild",), kinds=("percentile",))
    assert all(each.undefined == 0 for each in found)
    assert np.mean([each.share for each in found]) >= 0.9
    assert min(each.share for each in found) >= 0.75
