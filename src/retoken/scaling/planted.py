"""Constants to plant and a study to find them with: what the tests and the studies of this room share.

Losses are of small models on text: 3.6 to 3.0 nats a token over the decade of budgets.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from retoken.scaling.gamma import Gain
from retoken.scaling.laws import Chinchilla, Kaplan
from retoken.scaling.synthetic import Design

KAPLAN = Kaplan(A=5e10, B=3e9, alpha=0.12, beta=0.18)
CHINCHILLA = Chinchilla(E=1.7, A=400.0, B=2000.0, a=0.34, b=0.37)
SATURATING = Gain(form="saturating", at=50.0, gain=0.25, shape=float(np.log(30.0)), rho_s=0.03)
POWER = Gain(form="power", at=50.0, gain=0.25, shape=0.4, rho_s=0.03)
SPANS = (0.25, 0.4, 0.63, 1.0, 1.6, 2.5, 4.0)
"""Sizes of a budget over its best."""
PAPER = ((30.0, 1.0), (50.0, 1.0), (80.0, 1.0), (80.0, 0.3), (80.0, 0.6))
"""(eta, rho) of the paper's stages 2 to 4."""


def decade(count: int = 5, **changes: Any) -> Design:
    """Budgets over a decade, seven sizes each, two seeds, MoRT at the baseline's best sizes as in the paper.

    Args:
        count: Of budgets.
        changes: Fields of `Design` in place of these.
    """
    budgets = tuple(float(C) for C in np.geomspace(1e14, 1e15, count))
    usual: dict[str, Any] = {"budgets": budgets, "spans": SPANS, "seeds": 2, "attached": {"mort": PAPER}}
    return Design(**(usual | changes))
