"""What is asked of a scaling study: budgets, sizes, variants, controls, and one recipe for all runs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any, Literal, get_args

from retoken.errors import ConfigError

FlopsRule = Literal["kaplan", "counted"]
At = Literal["optimum", "all"]
Optimum = Literal["nearest", "vertex"]
_CHOICES = {"flops": FlopsRule, "at": At, "optimum": Optimum}
_TUPLES = (
    *("budgets", "sizes", "seeds", "optimum_seeds", "etas", "rhos"),
    *("mixture_budgets", "mixture_seeds", "control_budgets", "control_seeds"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """One scaling study."""

    budgets: tuple[float, ...] = ()
    """Training FLOPs C of the dense grid, such as 6e11 1e12."""
    flops: FlopsRule = "kaplan"
    """What a token costs: "kaplan", C = 6 N_c D; or "counted", see `retoken.presets.count`."""
    sizes: tuple[int, ...] = ()
    """N_c of the grid at every budget; empty: by the next three."""
    sizes_per_budget: int = 5
    """Sizes at a budget, in even ratios around the middle one."""
    spacing: float = 1.6
    """One size over the next smaller one."""
    tokens_per_param: float = 20.0
    """D / N_c of the middle size."""
    max_epochs: float = 1.0
    """Sizes whose tokens are more than so many times the training split are left out."""
    seeds: tuple[int, ...] = (0,)
    """Start values and data order of the grid's runs."""
    at: At = "optimum"
    """Where variants are trained: at each budget's best size, or at "all" sizes."""
    optimum: Optimum = "nearest"
    """The best size: the grid's "nearest" to the vertex of the parabola, or a shape near the "vertex"."""
    optimum_seeds: tuple[int, ...] = (0, 1, 2)
    """Of the dense baseline and its variants at the best sizes."""
    etas: tuple[float, ...] = (30.0, 50.0, 80.0)
    """N_n / N_c of MoRT, by n_e; the first one is trained with ReToken first, the last one at every rho."""
    rhos: tuple[str, ...] = ("1/3", "2/3", "1")
    """K / n_e of MoRT at the last eta, as fractions; everywhere else 1."""
    mixture_budgets: tuple[float, ...] = ()
    """Budgets at which a mixture-of-experts backbone is studied the same way."""
    mixture_seeds: tuple[int, ...] = (0,)
    """Of the mixture and its variants at its best sizes."""
    control_budgets: tuple[float, ...] = ()
    """Budgets with a baseline of as many stored parameters, and one of as much time, as the variants."""
    control_seeds: tuple[int, ...] = (0,)
    """Of the controls."""

    batch_size: int = 16
    """Sequences per optimizer step, the same for every run."""
    context_length: int = 128
    """Tokens per sequence."""
    lr: float = 8e-3
    """Peak learning rate at width `lr_width`; see studies/scaling."""
    lr_width: int = 64
    """The width `lr` was tuned at."""
    lr_power: float = 1.0
    """The rate of another width is lr * (lr_width / width) ** lr_power."""
    warmup_ratio: float = 0.05
    """Share of the steps that warm up."""
    min_lr_ratio: float = 0.1
    """Last learning rate over the peak; cosine in between."""
    weight_decay: float = 0.1
    """AdamW's decoupled decay of matrices."""
    table_lr_mult: float = 5.0
    """Learning rate of the tables over the backbone's; see studies/defaults."""
    eval_tokens: int = 0
    """Held-out tokens of the loss; 0: all of them."""
    threads: int = 1
    """CPU threads of a run. They change the order of sums, so they belong to the study."""

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            value, accepted = getattr(self, name), get_args(kind)
            if value not in accepted:
                raise ConfigError(f"{name} is {value!r}; accepted: {', '.join(accepted)}")
        self._check_lists()
        for name in ("sizes_per_budget", "batch_size", "context_length", "lr_width", "threads"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("tokens_per_param", "max_epochs", "lr"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "above 0")
        _check("spacing", self.spacing, self.spacing > 1, "above 1")
        for rho in self.rhos:
            _check("rhos", rho, 0 < fraction(rho) <= 1, "fractions above 0 and up to 1, such as 1/3")

    def _check_lists(self) -> None:
        for name in _TUPLES:
            values = getattr(self, name)
            twice = [value for value in values if values.count(value) > 1]
            if twice:
                raise ConfigError(f"{name} has {twice[0]} twice; accepted: each once")
            least = 0 if name.endswith("seeds") else None
            for value in values if name != "rhos" else ():
                good = value >= 0 if least == 0 else value > 0
                _check(name, value, good, "0 or more" if least == 0 else "above 0")
        for name in ("seeds", "optimum_seeds", "etas", "rhos"):
            _check(name, getattr(self, name), bool(getattr(self, name)), "one or more")
        known = set(self.budgets)
        for value in self.control_budgets:
            _check("control_budgets", value, value in known, f"some of budgets {list(self.budgets)}")

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_size * self.context_length

    def rate(self, width: int) -> float:
        """Peak learning rate of a backbone of that width."""
        return self.lr * (self.lr_width / width) ** self.lr_power

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StudyConfig:
        """The configuration `to_dict` wrote.

        Raises:
            ConfigError: An option is unknown, missing or not accepted.
        """
        known = {field.name for field in fields(cls)}
        for name in [*(set(values) - known), *(known - set(values))]:
            raise ConfigError(f"option {name!r} of a study is {'unknown' if name in values else 'missing'}")
        read: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**read)


def fraction(text: str) -> Fraction:
    """``1/3``, ``0.5`` or ``1`` as an exact number.

    Raises:
        ConfigError: It is none.
    """
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"rhos has {text!r}; accepted: fractions such as 1/3, 0.5 or 1") from None


def _check(option: str, found: object, good: bool, accepted: str) -> None:
    if not good:
        raise ConfigError(f"{option} has {found!r}; accepted: {accepted}")
