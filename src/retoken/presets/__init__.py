"""Backbones by name: the paper's and ours, their recipes, and their sizes counted from the configuration."""

from __future__ import annotations

import difflib

from retoken.errors import ConfigError
from retoken.presets import cpu, ladder, paper
from retoken.presets.count import Backbone, Counts, count
from retoken.presets.recipe import Preset, Recipe

__all__ = ["Backbone", "Counts", "Preset", "Recipe", "count", "get", "names", "presets"]


def presets() -> tuple[Preset, ...]:
    """Every preset, the paper's first."""
    return tuple(build() for build in (*paper.BUILDERS, *cpu.BUILDERS))


def names() -> tuple[str, ...]:
    """The names `get` takes."""
    return tuple(preset.name for preset in presets())


def get(name: str) -> Preset:
    """The preset of that name, in whatever case; or the backbone a name like ``llama-64x4`` spells out.

    Raises:
        ConfigError: there is none; the message lists the names and the closest.
    """
    known = {preset.name: preset for preset in presets()}
    if name.lower() in known:
        return known[name.lower()]
    if spelled := ladder.named(name.lower()):
        return spelled
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise ConfigError(
        f"preset is {name!r}{hint}; accepted: {', '.join(known)}, llama-WIDTHxLAYERS, moe-WIDTHxLAYERS"
    )
