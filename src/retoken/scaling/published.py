"""The paper's and JTok's scaling numbers as data, and what follows from them by arithmetic alone.

Sources: "paper" is the ReToken / MoRT text (its Sec. 4.3, Tables 6-7, Appendix H); "JTok" is arXiv
2602.00800, the later version of the same work, whose MoRT is called JTok-M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares, linprog

from retoken.scaling.etalaw import EtaLaw, fit_eta_law
from retoken.scaling.frontier import factor_of_ratio
from retoken.scaling.gamma import Form, Gain, bounds_of, params_of
from retoken.scaling.laws import Array

BUDGETS = (3.89e18, 6.11e18, 1.11e19, 1.89e19, 3.33e19)
"""FLOPs (paper, Sec. 4.3.1)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One column of Table 6 or 7: MoRT at the baselines' compute-optimal N_c and D."""

    source: str
    eta: float
    rho: float
    loss_reduction: float
    """Per cent, to two digits behind the point."""
    compute_ratio: float
    """Baseline's compute over MoRT's at equal loss, to two digits."""


TABLE_6 = tuple(
    Cell(source="paper, Table 6", eta=eta, rho=1.0, loss_reduction=loss, compute_ratio=ratio)
    for eta, loss, ratio in ((30, 2.00, 1.20), (50, 2.42, 1.25), (80, 2.85, 1.29))
)
TABLE_7 = tuple(
    Cell(source="paper, Table 7", eta=80, rho=rho, loss_reduction=loss, compute_ratio=ratio)
    for rho, loss, ratio in ((0.3, 2.70, 1.27), (0.6, 2.81, 1.28), (1.0, 2.85, 1.29))
)
HALF_UNIT = 0.005
"""What either column may be off by through rounding."""
DIFFERENCE, SMALLEST_STEP = 1e-5, 1e-8
"""Of a number in a fit to the tables, in half units of what is missed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SizeGain:
    """Gain of (eta, rho) = (50, 0.5) on one backbone, 100B tokens (paper, Appendix H, Fig. 8c)."""

    backbone: str
    activated: float
    gain: float
    """Nats a token."""
    relative: float
    """Per cent."""


SIZES = (
    SizeGain(backbone="A180m-T2B", activated=0.18e9, gain=0.059, relative=2.7),
    SizeGain(backbone="A0.3B-T3.6B", activated=0.3e9, gain=0.064, relative=3.0),
    SizeGain(backbone="A0.8B-T9.1B", activated=0.8e9, gain=0.051, relative=2.55),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """log2 L = slope log10 C + intercept (JTok, IsoFLOPs study, C from 3e18 to 3e20)."""

    name: str
    slope: float
    intercept: float

    def log2_loss(self, C: float) -> float:
        """Base-2 logarithm of the frontier's loss."""
        return self.slope * float(np.log10(C)) + self.intercept

    def log10_compute(self, log2_loss: float) -> float:
        """Decimal logarithm of the FLOPs that reach a loss."""
        return (log2_loss - self.intercept) / self.slope

    @property
    def exponent(self) -> float:
        """x of L ~ C^-x."""
        return -self.slope * float(np.log10(2))


JTOK_BASELINE = Line(name="vanilla", slope=-0.2016, intercept=5.1334)
JTOK_MORT = Line(name="JTok-M", slope=-0.2009, intercept=5.0881)
JTOK_RANGE = (3e18, 3e20)
JTOK_CLAIM = {"loss_reduction": 2.2, "compute_saved": 35.2}
"""Per cent, as stated beside the two lines."""
JTOK_PER_DOUBLING = -0.0118
"""Loss a doubling of eta, 30 to 130, 3.9B-A0.6B, 100B tokens, rho 0.25; R^2 0.996 (JTok)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """Two lines compared at one budget of the baseline."""

    compute: float
    gap: float
    """log2 L of the baseline less the variant's."""
    loss_reduction: float
    """Per cent."""
    compute_saved: float
    """Per cent of the baseline's compute, at equal loss."""


def jtok_saving(C: float) -> Saving:
    """What JTok's two lines say at C FLOPs of the baseline."""
    base = JTOK_BASELINE.log2_loss(C)
    gap = base - JTOK_MORT.log2_loss(C)
    saved = 1 - 10 ** (JTOK_MORT.log10_compute(base) - float(np.log10(C)))
    return Saving(compute=C, gap=gap, loss_reduction=100 * (1 - 2**-gap), compute_saved=100 * saved)


def gap_for_saving(saved: float) -> float:
    """log2 gap that a share of compute saved, in per cent, would need on the baseline's line."""
    return JTOK_BASELINE.slope * float(np.log10(1 - saved / 100))


@dataclass(frozen=True, kw_only=True, slots=True)
class TableFit:
    """One frontier exponent and one gamma for Tables 6 and 7."""

    gain: Gain
    exponent: float
    """alpha beta / (alpha + beta) of Eq. 13."""
    worst: float
    """Largest miss in half units of the last digit; at 1 or below everything rounds to what is printed."""

    def compute_ratio(self, eta: float, rho: float) -> float:
        """1 + gamma eta (Eq. 14)."""
        return float(self.gain.factor(eta, rho))

    def loss_reduction(self, eta: float, rho: float) -> float:
        """1 - g, per cent (Eq. 13)."""
        return 100 * (1 - self.compute_ratio(eta, rho) ** -self.exponent)


def fit_tables(form: Form, cells: tuple[Cell, ...] = (*TABLE_6, *TABLE_7)) -> TableFit:
    """The exponent and gamma whose largest miss, in half units of the last printed digit, is smallest.

    Args:
        form: Of gamma's dependence on eta.
        cells: What is to be met.
    """
    eta, rho = (np.array([getattr(cell, name) for cell in cells]) for name in ("eta", "rho"))
    wanted = np.array([[cell.compute_ratio, cell.loss_reduction] for cell in cells])
    names = ("exponent", *params_of(form, with_rho=True))
    limits = np.array([(0.01, 1.0), *bounds_of(form, eta, rho, with_rho=True)])

    def misses(point: Array) -> Array:
        gain, exponent = _table_gain(form, dict(zip(names, np.clip(point, *limits.T), strict=True)))
        factor = gain.factor(eta, rho)
        found = np.stack([factor, 100 * (1 - factor**-exponent)], axis=-1)
        return ((found - wanted) / HALF_UNIT).ravel()

    guess = {"exponent": 0.11, "gain": 0.25, "power": 0.4, "log_eta_s": 3.4, "rho_s": 0.03}
    start = least_squares(misses, [guess[name] for name in names], bounds=limits.T, x_scale="jac")
    point = np.clip(_flattened(misses, start.x, np.linalg.norm(start.jac, axis=0)), *limits.T)
    gain, exponent = _table_gain(form, dict(zip(names, point, strict=True)))
    return TableFit(gain=gain, exponent=exponent, worst=float(np.abs(misses(point)).max()))


def least_miss(cells: tuple[Cell, ...] = (*TABLE_6, *TABLE_7)) -> float:
    """The smallest worst miss, in half units, that any gamma leaves with one exponent.

    Every column has a factor of its own here; above 1, the printed numbers themselves contradict one
    exponent.
    """
    wanted = np.array([[cell.compute_ratio, cell.loss_reduction] for cell in cells])

    def misses(point: Array) -> Array:
        factor, exponent = 1 + point[1:], point[0]
        found = np.stack([factor, 100 * (1 - factor**-exponent)], axis=-1)
        return ((found - wanted) / HALF_UNIT).ravel()

    start = least_squares(misses, [0.11, *(wanted[:, 0] - 1)], x_scale="jac")
    point = _flattened(misses, start.x, np.linalg.norm(start.jac, axis=0))
    return float(np.abs(misses(point)).max())


def _flattened(misses: Callable[[Array], Array], start: Array, scale: Array) -> Array:
    """From least squares to the point whose largest miss is smallest: least t with |miss| at most t.

    By linear programs within a reach that follows their success (Madsen 1975). Near its least the largest
    miss hardly depends on the point, so a solver that stops when t stops falling stops where rounding says.
    """
    point, reach = start, 1.0
    while reach > SMALLEST_STEP:
        found = misses(point)
        worst, slope = np.abs(found).max(), _slope(misses, point, scale)
        slack = -np.ones((found.size, 1))
        solved = linprog(
            [*np.zeros(point.size), 1.0],
            A_ub=np.block([[slope, slack], [-slope, slack]]),
            b_ub=np.concatenate([-found, found]),
            bounds=[*[(-reach, reach)] * point.size, (0.0, None)],
        )
        there = point + solved.x[:-1] / scale
        if np.abs(misses(there)).max() < worst:
            point, reach = there, 2 * reach
        else:
            reach /= 4
    return point


def _slope(misses: Callable[[Array], Array], point: Array, scale: Array) -> Array:
    """Derivatives [misses, numbers] by `scale` times each number, by central differences."""
    steps = np.diag(DIFFERENCE / scale)
    return np.stack([misses(point + step) - misses(point - step) for step in steps], 1) / (2 * DIFFERENCE)


def _table_gain(form: Form, named: dict[str, float]) -> tuple[Gain, float]:
    bend = named.get("power", named.get("log_eta_s", 0.0))
    gain = Gain(form=form, at=50.0, gain=named["gain"], shape=bend, rho_s=named["rho_s"])
    return gain, float(named["exponent"])


def exponent_range(cell: Cell) -> tuple[float, float]:
    """Exponents of Eq. 13 that a column's two numbers allow, each anywhere within its rounding."""
    loss = np.array([cell.loss_reduction - HALF_UNIT, cell.loss_reduction + HALF_UNIT]) / 100
    ratio = np.array([cell.compute_ratio + HALF_UNIT, cell.compute_ratio - HALF_UNIT])
    low, high = -np.log1p(-loss) / np.log(ratio)
    return float(low), float(high)


def implied_gamma(cell: Cell) -> float:
    """gamma that a column's compute ratio implies (Eq. 14)."""
    return (cell.compute_ratio - 1) / cell.eta


def left_out(form: Form) -> dict[float, float]:
    """Table 6 with each eta left out in turn: predicted less printed compute ratio, by eta.

    With three eta, forms of two numbers go through the two that are left.
    """
    found = {}
    for cell in TABLE_6:
        others = [other for other in TABLE_6 if other is not cell]
        gain = _through(form, others)
        found[cell.eta] = float(gain.factor(cell.eta, 1.0)) - cell.compute_ratio
    return found


def _through(form: Form, cells: list[Cell]) -> Gain:
    """The form fitted to compute ratios alone, by least squares; exact where it has a number a cell."""
    eta = np.array([cell.eta for cell in cells])
    extra = np.array([cell.compute_ratio - 1 for cell in cells])
    names = params_of(form, with_rho=False)
    limits = np.array(bounds_of(form, eta, np.ones_like(eta), with_rho=False)).T
    guess = {"gain": 0.25, "power": 0.4, "log_eta_s": 3.4}

    def gain_of(point: Array) -> Gain:
        bend = float(point[1]) if point.size > 1 else 0.0
        return Gain(form=form, at=50.0, gain=float(point[0]), shape=bend)

    solved = least_squares(
        lambda z: (gain_of(z).extra(eta, np.ones_like(eta)) - extra) / HALF_UNIT,
        [guess[name] for name in names],
        bounds=limits,
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
    )
    return gain_of(solved.x)


def table_eta_law(base_loss: float) -> EtaLaw:
    """JTok's law of eta on Table 6: loss against log2 eta, for a baseline of a given loss."""
    losses = [base_loss * (1 - cell.loss_reduction / 100) for cell in TABLE_6]
    return fit_eta_law([cell.eta for cell in TABLE_6], losses)


def implied_base_loss(size: SizeGain) -> float:
    """Loss of the backbone without tables, from its absolute and relative gain."""
    return size.gain / (size.relative / 100)


def implied_factor(cell: Cell, exponent: float) -> float:
    """1 + gamma eta that a column's loss reduction implies at an exponent (Eq. 13 solved)."""
    return float(factor_of_ratio(1 - cell.loss_reduction / 100, exponent))
