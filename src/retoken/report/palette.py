"""Colours: one name each, one value per theme, so that figures follow the reader's light or dark page.

Figures are drawn in stand-in colours that occur nowhere else; ``to_variables`` then writes the CSS variable
in their place. A figure knows roles ("ink", "series-1", "sequential-7"), never values.
"""

import re
from collections.abc import Mapping

LEVELS = 24
"""Steps of a heatmap's colour ramp."""

LIGHT: Mapping[str, str] = {
    "page": "#fdfdfb", "raised": "#f5f4ef", "ink": "#1c1e21", "muted": "#5f646b", "rule": "#dcdad2",
    "grid": "#e7e5de", "link": "#1f5fa8", "good": "#1c7a4a", "bad": "#b3372b",
    "series-0": "#6d7278", "series-1": "#1f6fc0", "series-2": "#c8570c",
    "series-3": "#7b4fb0", "series-4": "#2f8a5b",
}  # fmt: skip
DARK: Mapping[str, str] = {
    "page": "#15171a", "raised": "#1e2125", "ink": "#e8e6e1", "muted": "#a2a6ad", "rule": "#363a40",
    "grid": "#2b2f34", "link": "#86b8f2", "good": "#63c794", "bad": "#f0877b",
    "series-0": "#a9aeb6", "series-1": "#69aef5", "series-2": "#f59a52",
    "series-3": "#c09cf0", "series-4": "#68c795",
}  # fmt: skip
SERIES = sum(name.startswith("series-") for name in LIGHT)

# Stops of the ramps, low to high. In the dark the high end is the bright one, so that "more" stands out.
_RAMPS = {
    "sequential": (
        ("#f4f1e8", "#cfe0c8", "#8cc4b4", "#459aa6", "#24688f", "#1b3a69", "#171d3f"),
        ("#202630", "#1d3f63", "#236a8e", "#419ca6", "#74c0a6", "#addb9f", "#e6eea6"),
    ),
    "diverging": (
        ("#1b4f91", "#6fa0d0", "#c5d9ea", "#f5f3ee", "#f2cfb0", "#dd8a4e", "#9c3d06"),
        ("#8cc3ff", "#4b86c4", "#2b4a6c", "#22252a", "#6b4429", "#c4763b", "#ffc08a"),
    ),
}


def _mixed(stops: tuple[str, ...], share: float) -> str:
    at = share * (len(stops) - 1)
    low = min(int(at), len(stops) - 2)
    pair = [[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in stops[low : low + 2]]
    return "#" + "".join(f"{round(a + (b - a) * (at - low)):02x}" for a, b in zip(*pair, strict=True))


def _ramped(dark: bool) -> dict[str, str]:
    return {
        f"{ramp}-{level}": _mixed(stops[dark], level / (LEVELS - 1))
        for ramp, stops in _RAMPS.items()
        for level in range(LEVELS)
    }


def theme(*, dark: bool) -> dict[str, str]:
    """Every colour's value in a theme, by role."""
    return {**(DARK if dark else LIGHT), **_ramped(dark)}


def stand_in(role: str) -> str:
    """The colour that a figure draws a role in; unlike any colour matplotlib uses by itself."""
    return f"#fe{_ROLES.index(role):04x}"


def ramp(kind: str) -> list[str]:
    """Stand-ins of a colour ramp, low to high."""
    return [stand_in(f"{kind}-{level}") for level in range(LEVELS)]


def to_variables(svg: str) -> str:
    """The figure with every stand-in replaced by its CSS variable."""
    return re.sub(r"#fe([0-9a-f]{4})\b", lambda found: f"var(--{_ROLES[int(found[1], 16)]})", svg)


def css_variables(*, dark: bool) -> str:
    """Declarations of every role for a theme."""
    return " ".join(f"--{role}: {value};" for role, value in theme(dark=dark).items())


_ROLES = tuple(theme(dark=False))
