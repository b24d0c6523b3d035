"""Which backbone has about so many parameters: the ladder's shape nearest a wanted N_c, and its counts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from retoken import presets
from retoken.presets import Backbone, ladder

BackboneName = Literal["dense", "mixture"]
KINDS: dict[str, ladder.Kind] = {"dense": "llama", "mixture": "moe"}
ASPECT = 16
"""Width over layers that shapes are held near, as in the presets (64 x 4, 128 x 8)."""
ASPECT_WEIGHT = 0.15
"""A doubled aspect weighs as much as 10 % of a missed size: enough to keep neighbours alike."""
LEAST_LAYERS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A backbone of the ladder."""

    backbone: BackboneName
    width: int
    layers: int

    @property
    def preset(self) -> str:
        """Its name in `retoken.presets`."""
        return f"{KINDS[self.backbone]}-{self.width}x{self.layers}"

    @property
    def compute_params(self) -> int:
        """N_c: activated, without embedding and head."""
        return ladder.compute_params(KINDS[self.backbone], self.width, self.layers)

    def measured(self, vocab_size: int, context_length: int) -> Backbone:
        """Its counts on the real modules."""
        return Backbone.of(presets.get(self.preset), vocab_size=vocab_size, context_length=context_length)


def near(backbone: BackboneName, compute_params: float) -> Shape:
    """The shape whose N_c is near, at an aspect (width over layers) near 16."""
    return min(_candidates(backbone, compute_params), key=lambda shape: _miss(shape, compute_params))


def near_stored(backbone: BackboneName, stored_params: float, vocab_size: int) -> Shape:
    """The shape that has about so many parameters with embedding and head, all experts counted."""

    def stored(shape: Shape) -> float:
        return shape.measured(vocab_size, 1).params

    low, high = 1.0, float(stored_params)
    while high / low > 1.01:  # N_c grows with what is stored, so halving the ratio finds it
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stored(near(backbone, middle)) < stored_params else (low, middle)
    found = {near(backbone, low), near(backbone, high), near(backbone, high * 1.1)}
    return min(found, key=lambda shape: abs(math.log(stored(shape) / stored_params)))


def from_preset(name: str) -> Shape:
    """The shape that `Shape.preset` names."""
    kind, size = name.split("-")
    width, layers = map(int, size.split("x"))
    backbone: Any = next(key for key, value in KINDS.items() if value == kind)
    return Shape(backbone=backbone, width=width, layers=layers)


def _miss(shape: Shape, compute_params: float) -> float:
    size = abs(math.log(shape.compute_params / compute_params))
    return size + ASPECT_WEIGHT * abs(math.log2(shape.width / shape.layers / ASPECT))


def usual_width(compute_params: float) -> float:
    """A block has about 12 width squared, so at an aspect of 16 the width is (16 N_c / 12) ** (1/3)."""
    return (ASPECT * compute_params / 12) ** (1 / 3)


def _candidates(backbone: BackboneName, compute_params: float) -> list[Shape]:
    """Shapes around."""
    middle = usual_width(compute_params)
    widths = [w for w in range(16, max(32, int(2 * middle)) + 33, 16) if w % ladder.width_step(w) == 0]
    wanted = [w for w in widths if 0.5 * middle <= w <= 2 * middle] or widths[:1]
    depths = {w: max(LEAST_LAYERS, round(compute_params / (12 * w * w))) for w in wanted}
    return [
        Shape(backbone=backbone, width=width, layers=layers)
        for width, depth in depths.items()
        for layers in range(max(LEAST_LAYERS, depth - 1), depth + 2)
    ]
