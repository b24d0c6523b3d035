"""Closed forms against the paper's equations one by one and against search."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retoken.errors import DataError
from retoken.scaling import frontier, naive
from retoken.scaling.etalaw import eta_laws, fit_eta_law
from retoken.scaling.gamma import FORMS, Gain, rho_shape, shape
from retoken.scaling.laws import PAPER_COST, Chinchilla, Cost, Kaplan
from retoken.scaling.runs import Runs

ROOT = Path(__file__).parents[2]
constants = st.fixed_dictionaries(
    {
        "A": st.floats(1e6, 1e14), "B": st.floats(1e6, 1e14),
        "alpha": st.floats(0.03, 0.6), "beta": st.floats(0.03, 0.6),
    }
)  # fmt: skip
budgets = st.floats(1e12, 1e22)
factors = st.floats(0.5, 3.0)
costs = st.builds(Cost, scale=st.floats(1, 200), power=st.floats(0.6, 1.2))
exponents = st.floats(0.1, 0.7)
chinchillas = st.builds(
    Chinchilla, E=st.floats(0.5, 2.5), A=st.floats(50, 2000), B=st.floats(50, 5000), a=exponents, b=exponents
)
sizes = st.floats(1e8, 1e12)
kaplans = st.builds(Kaplan, A=sizes, B=sizes, alpha=st.floats(0.05, 0.4), beta=st.floats(0.05, 0.4))


@given(constants, st.floats(1e4, 1e10), st.floats(1e5, 1e12))
def test_kaplan_is_equation_9(named: dict[str, float], N: float, D: float) -> None:
    assert Kaplan(**named).loss(N, D) == pytest.approx(naive.kaplan_loss(N, D, **named), rel=1e-9)


@given(constants, budgets)
@settings(max_examples=40)
def test_the_closed_frontier_is_equation_11_and_what_search_finds(named: dict[str, float], C: float) -> None:
    law = Kaplan(**named)
    assert law.optimal_loss(C) == pytest.approx(naive.optimal_loss(C, **named), rel=1e-9)
    N, loss = frontier.searched(law, C)
    assert law.optimal_loss(C) <= loss * (1 + 1e-12)
    inside = 1 < float(law.optimal_params(C)) < C / 6
    if inside:
        assert loss == pytest.approx(law.optimal_loss(C), rel=1e-9)
        assert np.log(N) == pytest.approx(np.log(law.optimal_params(C)), abs=1e-3)
        assert naive.searched_loss(C, **named) == pytest.approx(law.optimal_loss(C), rel=1e-9)


@given(st.one_of(chinchillas, kaplans), budgets, costs)
@settings(max_examples=40)
def test_frontiers_at_any_cost_are_what_search_finds(law: Kaplan | Chinchilla, C: float, cost: Cost) -> None:
    best = float(law.optimal_params(C, cost))
    if not 1 < best < (C / cost.scale) ** (1 / cost.power):
        return
    _, loss = frontier.searched(law, C, cost)
    assert loss == pytest.approx(float(law.optimal_loss(C, cost)), rel=1e-9)
    assert law.loss(best, cost.tokens(C, best)) == pytest.approx(float(law.optimal_loss(C, cost)), rel=1e-9)
    step = 1.01
    slope = -np.log(law.optimal_loss(C * step, cost) / law.optimal_loss(C / step, cost)) / (2 * np.log(step))
    assert slope == pytest.approx(float(law.exponent(C, cost)), rel=1e-3)


@given(constants, budgets, factors, costs)
def test_the_shift_is_equation_13_and_the_saving_equation_14(
    named: dict[str, float], C: float, factor: float, cost: Cost
) -> None:
    law = Kaplan(**named)
    g = naive.frontier_shift(0.01, 100 * (factor - 1), named["alpha"], named["beta"])
    assert frontier.shift(law, factor, C) == pytest.approx(g, rel=1e-9)
    assert np.log(law.with_factor(factor).optimal_loss(C)) == pytest.approx(
        naive.log_shift(float(law.optimal_loss(C)), g), abs=1e-9
    )
    assert C / frontier.compute_ratio(law, factor, C) == pytest.approx(
        naive.compute_to_match(C, 0.01, 100 * (factor - 1)), rel=1e-8
    )
    assert frontier.compute_ratio(law, factor, C, cost) == pytest.approx(factor**cost.power, rel=1e-8)
    exponent = float(law.exponent(C))
    assert frontier.factor_of_ratio(g, exponent) == pytest.approx(factor, rel=1e-8)


@given(constants, budgets, st.floats(1.0, 3.0))
def test_tables_at_the_baselines_best_size_gain_less_than_the_frontier_promises(
    named: dict[str, float], C: float, factor: float
) -> None:
    law = Kaplan(**named)
    promised, measured = frontier.shift(law, factor, C), frontier.attached_shift(law, factor, C)
    a, beta = named["alpha"] / named["beta"], named["beta"]
    assert measured == pytest.approx(((factor**-a + a) / (1 + a)) ** beta, rel=1e-8)
    assert promised <= measured * (1 + 1e-12)
    little = 1 + 1e-4
    assert np.log(frontier.attached_shift(law, little, C)) == pytest.approx(
        np.log(frontier.shift(law, little, C)), rel=1e-3
    )


@given(st.one_of(chinchillas, kaplans), budgets, costs)
def test_compute_for_a_loss_is_the_frontier_backwards(law: Kaplan | Chinchilla, C: float, cost: Cost) -> None:
    if isinstance(law, Chinchilla) and law.optimal_loss(C, cost) < 1.001 * law.E:
        return  # the difference to E has no digits left
    assert law.compute_for(law.optimal_loss(C, cost), cost) == pytest.approx(C, rel=1e-6)


def test_chinchilla_has_a_loss_below_which_there_is_nothing() -> None:
    law = Chinchilla(E=1.7, A=400.0, B=2000.0, a=0.34, b=0.37)
    assert law.loss(1e8, 1e9) == pytest.approx(
        naive.chinchilla_loss(1e8, 1e9, 1.7, 400.0, 2000.0, 0.34, 0.37)
    )
    assert law.compute_for(1.7) == np.inf
    assert law.compute_for(1.6) == np.inf
    factor = 1.3
    assert law.with_factor(factor).loss(1e8, 1e9) == pytest.approx(law.loss(1.3e8, 1e9))
    shifts = frontier.shift(law, factor, np.array([1e15, 1e18, 1e21]))
    assert (np.diff(shifts) > 0).all() and shifts.max() < 1


def test_laws_broadcast_over_draws() -> None:
    one = [Kaplan(A=A, B=3e9, alpha=0.12, beta=0.18) for A in (1e9, 1e10)]
    both = Kaplan(A=np.array([1e9, 1e10]), B=3e9, alpha=0.12, beta=0.18)
    assert both.optimal_loss(1e15) == pytest.approx([law.optimal_loss(1e15) for law in one])


def test_effective_parameters_are_equation_12() -> None:
    gain = Gain(form="constant", at=50.0, gain=0.25)
    assert 1e6 * gain.factor(80, 1.0) == pytest.approx(naive.effective_params(1e6, 80e6, 0.005))
    assert gain.gamma(80, 1.0) == pytest.approx(0.005)
    assert gain.factor(0.0, 0.0) == 1


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_its_gain_at_its_eta_and_grows(form: str) -> None:
    gain = Gain(form=form, at=50.0, gain=0.25, shape=0.4 if form == "power" else 3.0, rho_s=0.1)  # pyright: ignore[reportArgumentType]
    assert gain.extra(50.0, 1.0) == pytest.approx(0.25)
    found = gain.extra(np.array([1.0, 10.0, 100.0, 1000.0]), 1.0)
    assert (np.diff(found) > 0).all()
    assert gain.extra(50.0, 0.5) < 0.25
    assert Gain(form=form, at=50.0, gain=-0.9, shape=2.0).factor(1e6, 1.0) > 0  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("form", FORMS)
def test_slopes_of_shapes(form: str) -> None:
    eta, z, little = np.array([5.0, 50.0, 300.0]), 0.7, 1e-6
    ahead, behind = (shape(form, eta, 50.0, z + sign * little)[0] for sign in (1, -1))  # pyright: ignore[reportArgumentType]
    assert shape(form, eta, 50.0, z)[1] == pytest.approx((ahead - behind) / (2 * little), rel=1e-5, abs=1e-9)  # pyright: ignore[reportArgumentType]
    ahead, behind = (rho_shape(0.3, 0.2 + sign * little)[0] for sign in (1, -1))
    assert rho_shape(0.3, 0.2)[1] == pytest.approx((ahead - behind) / (2 * little), rel=1e-5)


def test_saturating_and_log_become_constant_far_below_their_bend() -> None:
    for form in ("saturating", "log"):
        bent = Gain(form=form, at=50.0, gain=0.25, shape=np.log(1e9))  # pyright: ignore[reportArgumentType]
        assert bent.extra(200.0, 1.0) == pytest.approx(1.0, rel=1e-5)


def test_the_law_of_eta() -> None:
    eta = [30.0, 60.0, 120.0]
    law = fit_eta_law(eta, [naive.eta_law(each, 2.1, -0.0118) for each in eta])
    assert (law.intercept, law.per_doubling, law.r_squared) == pytest.approx((2.1, -0.0118, 1.0))
    assert law.loss(240.0) == pytest.approx(naive.eta_law(240.0, 2.1, -0.0118))
    assert fit_eta_law(eta[:2], [2.0, 1.9]).r_squared is None
    with pytest.raises(DataError, match="accepted: at least 2"):
        fit_eta_law([30.0, 30.0], [2.0, 1.9])


def test_laws_of_eta_of_a_study(exact: Runs) -> None:
    found = eta_laws(exact, "mort")
    assert len(found) == 5
    for (size, tokens), law in found.items():
        here = exact.pick((exact.compute_params == size) & (exact.tokens == tokens) & (exact.rho == 1))
        assert law.r_squared is not None and law.r_squared > 0.98
        assert law.per_doubling == pytest.approx(np.polyfit(np.log2(here.eta), here.loss, 1)[0])


def test_every_naive_equation_is_in_the_papers_map_at_its_number() -> None:
    text = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (Eq\. \d+) \|(.*)$", text, flags=re.MULTILINE))
    numbers = {}
    for name in vars(naive):
        found = re.search(
            r"\(Eq\. (\d+)\)", (getattr(naive, name).__doc__ or "") if callable(getattr(naive, name)) else ""
        )
        if found:
            numbers[int(found[1])] = name
    assert sorted(numbers) == list(range(9, 16))
    for number, name in numbers.items():
        assert f"`src/retoken/scaling/naive.py:{name}`" in rows[f"Eq. {number}"], name


def test_the_papers_cost_is_six() -> None:
    assert PAPER_COST.per_token(1e6) == 6e6
    assert PAPER_COST.tokens(6e12, 1e6) == 1e6
