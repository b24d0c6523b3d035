"""What one comparison is: a backbone, variants of it, seeds, and the one recipe they share."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from retoken.compare.variants import VARIANTS, WIDE, attached
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.errors import ConfigError
from retoken.train.config import Device, TrainConfig

THE_THREE = ("baseline", "retoken", "mort")
# What tells the runs of a comparison apart; everything else of a run is the recipe.
OWN_OPTIONS = (
    "out",
    "data",
    "preset",
    "model",
    "variant",
    "modulator",
    "trains",
    "seed",
    "device",
    "threads",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompareConfig:
    """One comparison. Options of `recipe` override the preset's, for every run alike."""

    preset: str
    """Backbone by preset name; `retoken presets` lists them."""
    out: Path
    """Folder of the comparison: results.json, curves.csv, report.html and a folder a run."""
    data: Path
    """Token store written by `retoken prepare`."""
    variants: tuple[str, ...] = THE_THREE
    """Which variants are trained, by their names in `compare.variants`."""
    seeds: tuple[int, ...] = (0, 1)
    """Start values and data order; every variant is trained once on each."""
    retoken: ReTokenConfig = field(default_factory=ReTokenConfig)
    """How ReToken is attached."""
    mort: MoRTConfig = field(default_factory=MoRTConfig)
    """How MoRT is attached."""
    size: float = 1.0
    """Numbers in the tables of rivals over those of ReToken."""
    wide: str = ""
    """Preset of the variant "wide"."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """Options of a training run by name, in place of the preset's."""
    jobs: int = 1
    """Runs at once. Timings are fair only if each has cores of its own."""
    device: Device = "auto"
    """Where to compute; "auto": a GPU where there is one."""
    threads: int = 0
    """CPU threads of a run; 0: the machine's cores over `jobs`."""

    def __post_init__(self) -> None:
        _check_list("variants", self.variants)
        _check_list("seeds", self.seeds)
        for name in self.variants:
            if name not in VARIANTS:
                raise ConfigError(f"variants has {name!r}; accepted: {', '.join(VARIANTS)}")
        if (WIDE in self.variants) != bool(self.wide):
            raise ConfigError(
                f"wide is {self.wide!r} with variants {', '.join(self.variants)}; accepted: a preset's name "
                f"where {WIDE!r} is one of them, and only there"
            )
        for seed in self.seeds:
            if type(seed) is not int or seed < 0:
                raise ConfigError(f"seeds has {seed!r}; accepted: whole numbers from 0")
        for option, low in (("jobs", 1), ("threads", 0)):
            if getattr(self, option) < low:
                raise ConfigError(f"{option} is {getattr(self, option)}; accepted: {low} or more")
        accepted = [f.name for f in fields(TrainConfig) if f.name not in OWN_OPTIONS]
        for option in self.recipe:
            if option not in accepted:
                raise ConfigError(f"recipe has {option!r}; accepted: {', '.join(accepted)}")

    def modulator(self, variant: str) -> ModulatorConfig | None:
        """What a variant attaches; None for the baseline."""
        return attached(variant, self.retoken, self.mort, self.size)

    def backbone(self, variant: str) -> str:
        """The preset of a variant's backbone."""
        return self.wide if variant == WIDE else self.preset


def _check_list(option: str, values: tuple[Any, ...]) -> None:
    if not values:
        raise ConfigError(f"{option} is empty; accepted: one or more")
    twice = [value for value in dict.fromkeys(values) if values.count(value) > 1]
    if twice:
        raise ConfigError(f"{option} has {twice[0]} twice; accepted: each once")
