"""Where a model's rows live, said by the commands that put them there."""

from __future__ import annotations

import sys
from typing import Any


def say_placement(model: Any, aloud: bool) -> None:
    """A line a tier on stderr, where rows were placed."""
    source = getattr(getattr(model, "retoken", None), "source", None)
    placement = getattr(source, "placement", None)
    if aloud and placement is not None:
        print(placement, file=sys.stderr)
