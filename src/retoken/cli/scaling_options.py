"""What `retoken scaling fit` and `plot` have in common: which runs, which law, how it is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from retoken.errors import ConfigError
from retoken.scaling.bootstrap import bootstrap
from retoken.scaling.costs import COUNTED_PARAMS, cost_of, of_counted_params
from retoken.scaling.fit import Fit, fit
from retoken.scaling.identify import findings
from retoken.scaling.model import Model, model_of
from retoken.scaling.runs import Runs, read


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """The table of runs and the fit."""

    runs: Annotated[Path, tyro.conf.Positional]
    """CSV of runs, one row a run; docs/scaling.md lists its columns."""
    backbone: str = ""
    """Family of backbones to fit; needed where the file has several."""
    law: Literal["kaplan", "chinchilla"] = "kaplan"
    """Form of the loss: Eq. 9, or E + A / N^a + B / D^b."""
    gamma: Literal["constant", "power", "saturating", "log"] = "power"
    """Form of the gain gamma * eta as eta grows; constant is the paper's."""
    flops: Literal["6nd", "counted"] = "6nd"
    """What a budget buys: tokens at 6 N_c FLOPs each, or at those counted."""
    params: Literal["activated", "counted"] = "activated"
    """What N is: parameters without embedding and head, or FLOPs counted a token over 6, which have both
    the head and attention; then eta is over it, and a budget is in counted FLOPs."""
    draws: int = 400
    """Bootstrap draws; 0: no intervals."""
    method: Literal["wild", "runs"] = "wild"
    """What the bootstrap redraws: signs of seed groups' residuals, or seed groups."""
    seed: int = 0
    """Of the bootstrap."""
    delta: float = 0.0
    """Huber's threshold on log loss; 0: 1.345 standard deviations of the residuals."""

    def fitted(self) -> tuple[Fit, Model]:
        """The fit to the file's runs, and what is carried away of it.

        Raises:
            DataError: the file, or too few runs in it.
            ConfigError: a number that is not accepted.
        """
        if self.draws < 0 or not 0 <= self.delta < float("inf"):
            raise ConfigError(f"--draws is {self.draws} and --delta {self.delta}; accepted: both from 0")
        runs = self.read()
        found = fit(runs, self.law, self.gamma, delta=self.delta or None)
        drawn = bootstrap(found, self.draws, method=self.method, seed=self.seed) if self.draws else None
        cost = cost_of(runs, self.flops)
        notes = findings(found, cost, drawn)
        return found, model_of(found, drawn, cost, (*notes, *([COUNTED_PARAMS] if self._counted else [])))

    def read(self) -> Runs:
        """Runs of one backbone."""
        runs = read(self.runs).one_backbone(self.backbone)
        return of_counted_params(runs) if self._counted else runs

    @property
    def _counted(self) -> bool:
        return self.params == "counted"


def check_level(level: float) -> None:
    """Refuse what is no share.

    Raises:
        ConfigError: not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ConfigError(f"--level is {level}; accepted: between 0 and 1")
