"""Laws and forms of gamma compared by runs they were not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retoken.errors import DataError, RetokenError
from retoken.scaling.fit import Fit, fit
from retoken.scaling.gamma import FORMS, Form
from retoken.scaling.laws import LAWS, Array
from retoken.scaling.problem import make_problem, usable
from retoken.scaling.runs import Runs, levels


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How far a law is from runs it has not seen."""

    law: str
    form: str
    held_out: str
    """What was left out: "budget 1e15", or "eta of mort"."""
    runs: int
    """Left out."""
    error: float
    """Root mean square of log measured over predicted loss; NaN where the fit could not be made."""
    lean: float
    """Its mean: above 0, the runs are worse than predicted."""
    why: str = ""
    """Why there is no number."""


def errors_on(fitted: Fit, runs: Runs) -> Array:
    """Log measured over predicted loss ``[R]`` of other runs of the same variants."""
    law, gains = fitted.law, fitted.gains
    factor = np.ones(len(runs))
    for name, gain in gains.items():
        ours = runs.variant == name
        factor[ours] = gain.factor(runs.eta[ours], runs.rho[ours])
    return np.log(runs.loss) - law.log_loss(runs.compute_params * factor, runs.tokens)


def hold_out_budget(runs: Runs, law: str, form: Mapping[str, Form] | Form, largest: int = 1) -> Score:
    """Fitted to all but the largest budgets, tried on those.

    Args:
        runs: Of one backbone.
        law: "kaplan" or "chinchilla".
        form: Of gamma.
        largest: How many budgets are left out; from 1, with at least two left to fit to.

    Raises:
        DataError: too few budgets.
    """
    runs = usable(runs.one_backbone())
    if not 1 <= largest <= runs.budgets.size - 2:
        raise DataError(
            f"{largest} largest budgets of {runs.budgets.size} held out; "
            "accepted: from 1, with at least 2 left"
        )
    out = runs.budget > runs.budgets[-largest - 1]
    words = " and ".join(f"{budget:.3g}" for budget in runs.budgets[-largest:])
    return _score(runs, [out], law, form, f"budget {words}")


def hold_out_eta(runs: Runs, variant: str, law: str, form: Form) -> Score:
    """Each eta of a variant left out in turn; one score over all of them.

    Raises:
        DataError: fewer than three different eta.
    """
    runs = usable(runs.one_backbone())
    ours = runs.variant == variant
    level = levels(runs.eta)
    numbers = np.unique(level[ours])
    if numbers.size < 3:
        raise DataError(f"{numbers.size} different eta of {variant}; accepted: from 3 to leave one out")
    return _score(runs, [ours & (level == number) for number in numbers], law, form, f"eta of {variant}")


def compare(runs: Runs, largest: int = 1, laws: Sequence[str] = tuple(LAWS)) -> list[Score]:
    """Every law with every form of gamma, by the largest budgets, and by eta where there are three."""
    runs = usable(runs.one_backbone())
    forms: Sequence[Form] = FORMS if runs.variants else ("constant",)
    scores = [hold_out_budget(runs, law, form, largest) for law in laws for form in forms]
    for variant in runs.variants:
        if np.unique(levels(runs.of_variant(variant).eta)).size >= 3:
            scores += [hold_out_eta(runs, variant, law, form) for law in laws for form in forms]
    return scores


def _score(
    runs: Runs, parts: Sequence[npt.NDArray[np.bool_]], law: str, form: Mapping[str, Form] | Form, words: str
) -> Score:
    name = form if isinstance(form, str) else ", ".join(form.values())
    count = int(sum(part.sum() for part in parts))
    make_problem(runs, law, form)  # a wrong name is an error, unlike a fit that has too few runs
    try:
        errors = np.concatenate([_errors_without(runs, part, law, form) for part in parts])
    except RetokenError as error:
        return Score(
            law=law, form=name, held_out=words, runs=count, error=np.nan, lean=np.nan, why=str(error)
        )
    error, lean = float(np.sqrt((errors**2).mean())), float(errors.mean())
    return Score(law=law, form=name, held_out=words, runs=count, error=error, lean=lean)


def _errors_without(
    runs: Runs, out: npt.NDArray[np.bool_], law: str, form: Mapping[str, Form] | Form
) -> Array:
    rest, tried = runs.pick(~out), runs.pick(out)
    unseen = set(tried.variants) - set(rest.variants)
    if unseen:
        raise DataError(f"all runs of {', '.join(sorted(unseen))} are held out")
    return errors_on(fit(rest, law, form), tried)
