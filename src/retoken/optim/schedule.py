"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from retoken.errors import ConfigError

Shape = Literal["cosine", "wsd", "ws"]
DEFAULT_WSD_DECAY = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Warm-up, then the peak, then a decay, each a share of all steps (Tables 8 and 9)."""

    shape: Shape
    """"cosine": half a cosine down to `min_lr_ratio`; "wsd": stable, then a line down; "ws": stable."""
    total_steps: int
    """Optimizer steps of the run."""
    warmup_ratio: float = 0.05
    """Share of the steps that rise in a straight line from 0 to the peak."""
    decay_ratio: float | None = None
    """Share of the steps that decay at the end; None: all behind the warm-up (cosine), 0.2 (wsd), 0 (ws)."""
    min_lr_ratio: float = 0.1
    """The last step's rate over the peak."""

    def __post_init__(self) -> None:
        shapes = get_args(Shape)
        if self.shape not in shapes:
            raise ConfigError(f"schedule is {self.shape!r}; accepted: {', '.join(shapes)}")
        if self.total_steps < 1:
            raise ConfigError(f"total steps is {self.total_steps}; accepted: 1 or more")
        for name in ("warmup_ratio", "min_lr_ratio"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}; accepted: 0 to 1")
        self._check_decay()

    def _check_decay(self) -> None:
        if self.decay_ratio is None:
            return
        if not 0 <= self.decay_ratio <= 1 - self.warmup_ratio + 1e-9:
            raise ConfigError(
                f"decay_ratio is {self.decay_ratio}; accepted: 0 to {1 - self.warmup_ratio:g} (the rest)"
            )
        if self.shape == "ws" and self.decay_ratio > 0:
            raise ConfigError(
                f"decay_ratio is {self.decay_ratio} with schedule ws, which does not decay; accepted: 0"
            )

    @property
    def warmup_steps(self) -> int:
        """Steps of the rise."""
        return round(self.warmup_ratio * self.total_steps)

    @property
    def decay_steps(self) -> int:
        """Steps of the fall."""
        rest = self.total_steps - self.warmup_steps
        if self.decay_ratio is not None:
            return min(round(self.decay_ratio * self.total_steps), rest)
        return {"cosine": rest, "wsd": min(round(DEFAULT_WSD_DECAY * self.total_steps), rest), "ws": 0}[
            self.shape
        ]


def lr_factor(schedule: Schedule, step: int) -> float:
    """The rate of step `step` (0 is the first) over the peak.

    The first step already moves (1 / warm-up steps); the last step of a decay runs at `min_lr_ratio`.
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    into_decay = step + 1 - (schedule.total_steps - schedule.decay_steps)
    if schedule.shape == "ws" or into_decay <= 0:
        return 1.0
    share = min(into_decay / schedule.decay_steps, 1.0)
    height = 0.5 * (1 + math.cos(math.pi * share)) if schedule.shape == "cosine" else 1 - share
    return schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * height
