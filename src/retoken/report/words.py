"""Numbers and texts as a reader likes them."""

import re

from retoken.compare.stats import Spread
from retoken.compare.verdict import signed

THIN = "\N{NARROW NO-BREAK SPACE}"


def quantity(value: float) -> str:
    """A count in K, M, B with three significant digits."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size * 0.9995:
            return f"{_three(value / size)}{THIN}{suffix}"
    return f"{value:.0f}"


def memory(value: float) -> str:
    """Bytes in MiB or GiB."""
    mib = value / 2**20
    return f"{_three(mib / 1024)}{THIN}GiB" if mib >= 1000 else f"{_three(mib)}{THIN}MiB"


def seconds(value: float) -> str:
    """A duration."""
    if value < 90:
        return f"{_three(value)}{THIN}s"
    if value < 5400:
        return f"{_three(value / 60)}{THIN}min"
    return f"{_three(value / 3600)}{THIN}h"


def _three(value: float) -> str:
    size = abs(value)
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2}f}"


def plus_minus(found: Spread | None, digits: int = 3, *, sign: bool = False) -> str:
    """Mean with its standard deviation; the mean alone for one seed."""
    if found is None:
        return "–"
    mean = signed(found.mean, digits) if sign else f"{found.mean:.{digits}f}"
    return mean if found.std is None else f"{mean}{THIN}±{THIN}{found.std:.{digits}f}"


def ratio(value: float) -> str:
    """A ratio such as 1.02×."""
    return f"{value:.2f}×" if value < 9.95 else f"{value:.0f}×"


def compact(text: str) -> str:
    """A text without empty lines."""
    return re.sub(r"\s*\n\s*", "\n", text)
