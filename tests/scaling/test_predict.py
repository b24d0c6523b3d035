"""Predictions agree with the paper's equations, backwards with forwards; published numbers as they are."""

import numpy as np
import pytest

from retoken.errors import ConfigError, DataError
from retoken.scaling import naive, published
from retoken.scaling.bootstrap import bootstrap
from retoken.scaling.fit import fit
from retoken.scaling.laws import LAWS, PAPER_COST
from retoken.scaling.model import Model, load, model_of
from retoken.scaling.planted import CHINCHILLA, KAPLAN, SATURATING, decade
from retoken.scaling.predict import Setting, at_compute, for_loss
from retoken.scaling.synthetic import Noise, draw

MORT = Setting(variant="mort", eta=50.0, rho=1.0)


@pytest.fixture(scope="module", params=list(LAWS))
def model(request: pytest.FixtureRequest) -> Model:
    law = {"kaplan": KAPLAN, "chinchilla": CHINCHILLA}[request.param]
    found = fit(draw(law, {"mort": SATURATING}, decade(), Noise(), 0), request.param, "saturating")
    return model_of(found, bootstrap(found, 100), PAPER_COST)


def test_the_frontier_is_predicted_by_the_papers_equations() -> None:
    runs = draw(KAPLAN, {"mort": SATURATING}, decade(), Noise(run=0, pair=0), 0)
    model = model_of(fit(runs, "kaplan", "saturating"), None, PAPER_COST)
    found = at_compute(model, MORT, 1e15)
    base = naive.optimal_loss(1e15, KAPLAN.A, KAPLAN.B, KAPLAN.alpha, KAPLAN.beta)
    gamma = float(SATURATING.gamma(50, 1.0))
    g = naive.frontier_shift(gamma, 50, KAPLAN.alpha, KAPLAN.beta)
    assert found.base_loss.value == pytest.approx(base, rel=1e-5)
    assert found.loss.value == pytest.approx(base * g, rel=1e-5)
    assert found.reduction.value == pytest.approx(1 - g, rel=1e-4)
    assert found.compute_ratio.value == pytest.approx(
        1e15 / naive.compute_to_match(1e15, gamma, 50), rel=1e-4
    )
    assert found.loss.interval is None and found.one_run is None
    assert found.table_params.value == pytest.approx(50 * found.compute_params.value)


def test_what_reaches_a_loss_gives_that_loss(model: Model) -> None:
    there = at_compute(model, MORT, 4e14)
    back = for_loss(model, MORT, there.loss.value)
    assert back.compute.value == pytest.approx(4e14, rel=1e-6)
    assert back.compute_params.value == pytest.approx(there.compute_params.value, rel=1e-6)
    assert back.loss.value == pytest.approx(there.loss.value)
    span = back.compute.interval
    assert span is not None and span.low < 4e14 < span.high


def test_other_sizes_are_worse_and_the_papers_protocol_lies_between(model: Model) -> None:
    best = at_compute(model, MORT, 1e15)
    attached = at_compute(model, MORT, 1e15, attached=True)
    elsewhere = at_compute(model, MORT, 1e15, params=5 * best.compute_params.value)
    assert best.loss.value <= attached.loss.value < elsewhere.loss.value
    base = at_compute(model, Setting(), 1e15)
    assert attached.compute_params.value == pytest.approx(base.compute_params.value)
    assert base.reduction.value == pytest.approx(0, abs=1e-12)
    assert base.compute_ratio.value == pytest.approx(1)
    assert elsewhere.reduction.value > 0


def test_intervals_are_around_the_estimate_and_one_run_is_wider(model: Model) -> None:
    found = at_compute(model, MORT, 1e15)
    for name in ("compute_params", "tokens", "table_params", "loss", "reduction", "compute_ratio", "factor"):
        each = getattr(found, name)
        assert each.interval is not None and each.interval.holds(each.value), name
    assert found.compute.given and found.compute.interval is None
    assert found.one_run is not None and found.loss.interval is not None
    assert found.one_run.low < found.loss.interval.low and found.one_run.high > found.loss.interval.high


def test_extrapolation_is_said(model: Model) -> None:
    assert at_compute(model, MORT, 5e14).warnings == ()
    far = "\n".join(at_compute(model, Setting(variant="mort", eta=400.0, rho=0.1), 1e18).warnings)
    for words in ("C = 1e+18 is far outside", "eta = 400 is outside", "rho = 0.1 is outside", "N_c"):
        assert words in far


@pytest.mark.parametrize(
    ("setting", "numbers", "said"),
    [
        (Setting(variant="engram", eta=5), {"compute": 1e15}, "accepted: mort"),
        (Setting(variant="mort"), {"compute": 1e15}, "eta is 0.0 of mort"),
        (Setting(variant="mort", eta=50, rho=0), {"compute": 1e15}, "rho is 0"),
        (Setting(eta=3), {"compute": 1e15}, "eta is 3 of the baseline"),
        (MORT, {"compute": float("nan")}, "compute is nan"),
        (MORT, {"compute": 1e15, "params": -1.0}, "params is -1"),
        (MORT, {"compute": 1e15, "params": 1e6, "attached": True}, "one of the two"),
    ],
)
def test_questions_that_make_no_sense(model: Model, setting: Setting, numbers: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        at_compute(model, setting, **numbers)


def test_a_loss_that_no_model_reaches(model: Model) -> None:
    if model.coordinates.law == "chinchilla":
        with pytest.raises(ConfigError, match="no model of this law reaches"):
            for_loss(model, MORT, 0.5)
    with pytest.raises(ConfigError, match="loss is 0"):
        for_loss(model, MORT, 0.0)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"type": "scaling_model"}', '{"type": "scaling_model", "format_version": 1}']
)
def test_a_file_that_is_no_fit(content: str, tmp_path) -> None:
    (tmp_path / "fit.json").write_text(content)
    with pytest.raises(DataError, match=r"fit .*fit\.json"):
        load(tmp_path / "fit.json")


def test_the_tables_are_met_by_one_exponent_and_one_gamma() -> None:
    found = published.fit_tables("power")
    for cell in (*published.TABLE_6, *published.TABLE_7):
        assert found.compute_ratio(cell.eta, cell.rho) == pytest.approx(cell.compute_ratio, abs=0.0075)
        assert found.loss_reduction(cell.eta, cell.rho) == pytest.approx(cell.loss_reduction, abs=0.0075)
    assert found.worst == pytest.approx(1.49, abs=0.01)


def test_the_tables_contradict_one_exponent_and_a_constant_gamma() -> None:
    """Eta 50 allows exponents up to .1120, rho .6 from .1135 on; gamma falls by half from eta 30 to 80."""
    ranges = [published.exponent_range(cell) for cell in (*published.TABLE_6, *published.TABLE_7)]
    assert min(high for _, high in ranges) < max(low for low, _ in ranges)
    assert published.least_miss() == pytest.approx(1.34, abs=0.01)
    gammas = [published.implied_gamma(cell) for cell in published.TABLE_6]
    assert gammas == pytest.approx([0.0067, 0.0050, 0.0036], abs=5e-5)
    assert published.fit_tables("constant").worst > 50
    worst = {
        form: max(map(abs, published.left_out(form).values()))
        for form in ("constant", "power", "saturating", "log")
    }
    assert sorted(worst, key=worst.__getitem__) == ["saturating", "log", "power", "constant"]


def test_the_least_miss_is_the_least() -> None:
    """Exponent by exponent on a grid, the best factor of each column by itself on another."""
    factor = np.linspace(1.15, 1.35, 20001)
    least = []
    for exponent in np.linspace(0.109, 0.117, 81):
        worst = 0.0
        for cell in (*published.TABLE_6, *published.TABLE_7):
            ratio = np.abs(factor - cell.compute_ratio)
            loss = np.abs(100 * (1 - factor**-exponent) - cell.loss_reduction)
            worst = max(worst, float(np.maximum(ratio, loss).min()))
        least.append(worst / published.HALF_UNIT)
    assert published.least_miss() == pytest.approx(min(least), abs=0.02)


def test_jtoks_lines_save_less_than_is_stated() -> None:
    ends = [published.jtok_saving(C) for C in published.JTOK_RANGE]
    assert [each.compute_saved for each in ends] == pytest.approx([31.0, 29.9], abs=0.05)
    assert [each.loss_reduction for each in ends] == pytest.approx([2.22, 2.12], abs=0.005)
    assert published.gap_for_saving(35.2) == pytest.approx(0.0380, abs=5e-5)
    for each in ends:
        reached = published.JTOK_MORT.log2_loss(each.compute * (1 - each.compute_saved / 100))
        assert reached == pytest.approx(published.JTOK_BASELINE.log2_loss(each.compute))


def test_arithmetic_on_published_numbers() -> None:
    assert [published.implied_base_loss(size) for size in published.SIZES] == pytest.approx(
        [2.185, 2.133, 2.0], abs=1e-3
    )
    assert published.table_eta_law(2.0).per_doubling == pytest.approx(-0.0120, abs=1e-4)
    cell = published.TABLE_6[0]
    assert published.implied_factor(cell, 0.1125) == pytest.approx(0.98 ** (-1 / 0.1125))
    assert np.log2(10) * published.JTOK_BASELINE.exponent == pytest.approx(0.2016)
