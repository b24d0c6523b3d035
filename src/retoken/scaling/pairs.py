"""Runs with tables beside the baseline's of the same N_c, tokens and seed: what tables did, no law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retoken.scaling.laws import Array
from retoken.scaling.runs import BASELINE, Runs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pairs:
    """Runs ``[R]`` and their baselines ``[R]``, row by row."""

    runs: Runs
    base: Runs

    @property
    def reduction(self) -> Array:
        """1 - loss / baseline's loss ``[R]``."""
        return 1 - self.runs.loss / self.base.loss

    def pick(self, which: npt.NDArray[Any]) -> Pairs:
        """The pairs of a mask or of indices."""
        return Pairs(runs=self.runs.pick(which), base=self.base.pick(which))


def paired(runs: Runs, variant: str) -> Pairs:
    """A variant's runs that have a baseline of the same N_c, tokens and seed."""
    base = {key: row for row, key in enumerate(_keys(runs)) if runs.variant[row] == BASELINE}
    rows = [
        (row, base[key])
        for row, key in enumerate(_keys(runs))
        if runs.variant[row] == variant and runs.eta[row] > 0 and key in base
    ]
    ours, theirs = (np.array([pair[side] for pair in rows], dtype=np.int64) for side in (0, 1))
    return Pairs(runs=runs.pick(ours), base=runs.pick(theirs))


def _keys(runs: Runs) -> list[tuple[float, float, float]]:
    return [
        (float(n), float(d), float(s))
        for n, d, s in zip(runs.compute_params, runs.tokens, runs.seed, strict=True)
    ]
