"""What a fit cannot tell is said; forms are compared by runs they have not seen; the parabola's bias."""

import numpy as np
import pytest

from retoken.errors import ConfigError, DataError
from retoken.scaling.bootstrap import bootstrap
from retoken.scaling.fit import fit
from retoken.scaling.heldout import compare, hold_out_budget, hold_out_eta
from retoken.scaling.identify import condition, findings, profile, seed_spread
from retoken.scaling.intervals import interval
from retoken.scaling.isocompute import isocompute, nadir
from retoken.scaling.laws import PAPER_COST
from retoken.scaling.planted import KAPLAN, PAPER, SATURATING, SPANS, decade
from retoken.scaling.runs import Runs, joined, levels
from retoken.scaling.synthetic import Design, Noise, draw

GAINS = {"mort": SATURATING}


def said_of(design: Design, noise: Noise | None = None, law: str = "kaplan") -> str:
    """Everything that is found wrong with a study."""
    found = fit(draw(KAPLAN, GAINS, design, noise or Noise(), 0), law)
    return "\n".join(findings(found, PAPER_COST, bootstrap(found, 60)))


def test_a_good_study_has_no_weakness(noisy: Runs) -> None:
    found = fit(noisy)
    assert findings(found, PAPER_COST, bootstrap(found, 60)) == ()
    assert condition(found) < 1e3
    assert seed_spread(noisy) == pytest.approx(np.hypot(0.003, 0.003), rel=0.3)


def test_a_study_that_is_too_small_says_so() -> None:
    small = Design(budgets=(1e14, 2e14), spans=(1.0, 2.0), seeds=1, attached={"mort": [(30.0, 1.0)]})
    text = said_of(small)
    for words in ("2 budgets", "2 sizes", "one seed", "one eta", "one rho", "no interval is given"):
        assert words in text


def test_sizes_on_one_side_of_the_best_are_named() -> None:
    text = said_of(decade(spans=(8.0, 12.0, 16.0, 24.0), attached={}))
    assert "alpha is between" in text and "it is not known" in text
    assert "lies outside the sizes run" in text


def test_eta_that_follows_size_is_named() -> None:
    runs = draw(KAPLAN, GAINS, decade(attached={"mort": ((50.0, 1.0),)}), Noise(), 0)
    falling = np.where(runs.eta > 0, 50 * (runs.compute_params / 5e6) ** -0.5, 0.0)
    names = {name: getattr(runs, name) for name in Runs.__slots__}
    names |= {"eta": falling, "table_params": falling * runs.compute_params}
    assert "changes only with N_c" in "\n".join(findings(fit(Runs(**names)), PAPER_COST))


def test_budgets_in_other_flops_and_variants_without_tables_are_named(noisy: Runs) -> None:
    names = {name: getattr(noisy, name) for name in Runs.__slots__}
    wider = noisy.pick(np.flatnonzero(noisy.variant == "baseline")[:4])
    wide = {name: getattr(wider, name) for name in Runs.__slots__} | {"variant": np.array(["wider"] * 4)}
    found = fit(joined([Runs(**(names | {"budget": 1.3 * noisy.budget})), Runs(**wide)]))
    text = "\n".join(findings(found, PAPER_COST))
    assert "1.30 to 1.30 times 6 N_c D" in text
    assert found.left_out == ("wider",)
    assert len(found.runs) == len(noisy)


def test_a_law_of_another_shape_is_named() -> None:
    assert "the law is not of their shape" in said_of(decade(), Noise(run=0.001, pair=0.001), "chinchilla")


def test_a_profile_is_about_the_bootstrap_interval(noisy: Runs) -> None:
    base = noisy.of_variant("baseline")
    found = fit(base)
    drawn = bootstrap(found, 400)
    low, high = np.exp(np.quantile(drawn.z[:, 0], [0.025, 0.975]))
    seen = profile(found, "log_alpha")
    assert seen.low is not None and seen.high is not None
    assert (seen.low, seen.high) == pytest.approx((low, high), rel=0.03)


def test_intervals_are_undefined_where_draws_are_lost_or_groups_are_few() -> None:
    draws = np.random.default_rng(0).standard_normal(400)
    plain = interval(draws, asked=400)
    assert plain is not None and plain.holds(0.0)
    few = interval(draws, asked=400, freedom=4)
    assert few is not None and few.high > plain.high
    assert interval(draws, asked=400, freedom=0) is None
    assert interval(draws, asked=500) is None
    assert interval(np.where(draws > 1, np.inf, draws), asked=400) is None


def test_bca_is_the_percentile_interval_where_nothing_leans_and_shifts_where_it_does() -> None:
    draws = np.linspace(-3, 3, 401)
    even = interval(draws, asked=401, kind="bca", point=0.0, left_out=np.array([-1.0, 0.0, 1.0]))
    plain = interval(draws, asked=401)
    assert even is not None and plain is not None
    assert (even.low, even.high) == pytest.approx((plain.low, plain.high), abs=1e-9)
    shifted = interval(draws, asked=401, kind="bca", point=0.5, left_out=np.array([-1.0, 0.0, 1.0]))
    assert shifted is not None and shifted.low > plain.low
    assert interval(draws, asked=401, kind="bca", point=9.0, left_out=np.array([-1.0, 0.0, 1.0])) is None
    assert interval(draws, asked=401, kind="bca", point=0.0, left_out=np.array([])) is None


def test_the_right_law_and_form_are_nearest_to_runs_held_out() -> None:
    runs = draw(KAPLAN, GAINS, decade(), Noise(run=0.0005, pair=0.0005), 0)
    scores = {(each.law, each.form, each.held_out.split()[0]): each for each in compare(runs)}
    assert len(scores) == 2 * 4 * 2
    for form in ("constant", "power", "saturating", "log"):
        assert scores["kaplan", form, "budget"].error < 0.3 * scores["chinchilla", form, "budget"].error
    by_eta = {
        form: scores["kaplan", form, "eta"].error for form in ("constant", "power", "saturating", "log")
    }
    assert by_eta["constant"] > 2 * by_eta["saturating"]
    assert min(by_eta, key=by_eta.__getitem__) in ("saturating", "log")


def test_held_out_runs_are_not_fitted_to(noisy: Runs) -> None:
    spoiled = np.where(noisy.budget == noisy.budgets[-1], noisy.loss * 1.2, noisy.loss)
    runs = Runs(**{**{name: getattr(noisy, name) for name in Runs.__slots__}, "loss": spoiled})
    score = hold_out_budget(runs, "kaplan", "power")
    assert score.lean == pytest.approx(np.log(1.2), abs=0.01)
    assert score.runs == int((noisy.budget == noisy.budgets[-1]).sum())


def test_comparisons_that_cannot_be_made(noisy: Runs) -> None:
    with pytest.raises(DataError, match="accepted: from 1, with at least 2 left"):
        hold_out_budget(noisy, "kaplan", "power", 4)
    with pytest.raises(DataError, match="accepted: from 3 to leave one out"):
        hold_out_eta(noisy.pick(noisy.eta < 60), "mort", "kaplan", "power")
    with pytest.raises(ConfigError):
        hold_out_budget(noisy, "linear", "power")
    only_last = noisy.pick((noisy.eta == 0) | (noisy.budget == noisy.budgets[-1]))
    assert "all runs of mort are held out" in hold_out_budget(only_last, "kaplan", "power").why


def test_levels_of_eta() -> None:
    assert list(levels(np.array([0.0, 50.0, 30.0, 33.0, 80.0, 49.5]))) == [-1, 1, 0, 0, 2, 1]


def test_a_parabola_is_found_by_the_parabola() -> None:
    sizes = np.geomspace(1e5, 1e7, 6)
    found = nadir(1e14, sizes, 3 + 0.05 * (np.log(sizes) - np.log(2e6)) ** 2)
    assert (found.params, found.loss, found.inside) == (pytest.approx(2e6), pytest.approx(3.0), True)
    assert not nadir(1e14, sizes, 3 + 0.05 * (np.log(sizes) - np.log(2e8)) ** 2).inside
    assert np.isnan(nadir(1e14, sizes, 3 - 0.05 * np.log(sizes) ** 2).params)
    with pytest.raises(DataError, match="accepted: from 3"):
        nadir(1e14, sizes[:2], np.array([3.0, 3.1]))


def test_the_parabola_is_off_where_the_joint_fit_is_exact() -> None:
    wide = decade(spans=tuple(np.geomspace(1 / 16, 16, 7)), attached={})
    runs = draw(KAPLAN, {}, wide, Noise(run=0, pair=0), 0)
    C = 3e14
    off = isocompute(runs).optimal_params(C) / KAPLAN.optimal_params(C) - 1
    assert abs(off) > 0.1
    assert fit(runs).law.optimal_params(C) / KAPLAN.optimal_params(C) - 1 == pytest.approx(0, abs=1e-6)


def test_outliers_are_drawn_and_settings_kept() -> None:
    runs = draw(KAPLAN, GAINS, decade(), Noise(run=0.003, pair=0, outliers=0.2), 0)
    plain = draw(KAPLAN, GAINS, decade(), Noise(run=0, pair=0), 0)
    off = np.abs(np.log(runs.loss / plain.loss))
    assert 0.05 < (off > 0.01).mean() < 0.3
    assert len(runs) == 5 * 2 * (len(SPANS) + len(PAPER))
