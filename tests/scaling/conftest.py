"""Runs of a planted law."""

import pytest

from retoken.scaling.planted import KAPLAN, SATURATING, decade
from retoken.scaling.runs import Runs
from retoken.scaling.synthetic import Noise, draw


@pytest.fixture
def noisy() -> Runs:
    """Kaplan's law, with noise of a third of a per cent a run and as much a pair."""
    return draw(KAPLAN, {"mort": SATURATING}, decade(), Noise(), 0)


@pytest.fixture
def exact() -> Runs:
    """The same without noise."""
    return draw(KAPLAN, {"mort": SATURATING}, decade(), Noise(run=0, pair=0), 0)
