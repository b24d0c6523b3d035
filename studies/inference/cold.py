"""What rows cost a layer whose caches its own weights have just filled: cold.csv.

    python studies/inference/cold.py

Between matrices of the XL shape, in turns from layer to layer: the modulator's kernels by one thread and by
all of PyTorch's; quartiles over layers and passes. A pass over gigabytes leaves neither rows nor the
interpreter's own code in any cache, so that a loop over a kernel says little about what it adds to a token.
"""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from retoken.ops import fused

TABLE = Path(__file__).parent / "cold.csv"
LAYERS, WIDTH, INNER, TOKENS, EXPERTS, TOP_K = 28, 1536, 8960, 2000, 5, 3
POSITIONS, TURNS = (1, 8, 16, 64, 256), 12
EPS = 1e-6


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Random bfloat16 weights."""
    return nn.Linear(inputs, outputs, bias=False, dtype=torch.bfloat16)


class Layer(nn.Module):
    """Matrices as a layer of the XL shape has them, and a modulator's own parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.gate = linear(WIDTH, 4 * WIDTH), linear(WIDTH, INNER)
        self.up, self.down = linear(WIDTH, INNER), linear(INNER, WIDTH)
        self.router, self.scale = (
            linear(WIDTH, EXPERTS),
            nn.Parameter(torch.ones(WIDTH, dtype=torch.bfloat16)),
        )

    def forward(self, x: Tensor) -> Tensor:
        """The increment [1, S, D]."""
        x = x + self.attention(x)[..., :WIDTH]
        return self.down(F.silu(self.gate(x)) * self.up(x))


def calls(layer: Layer, near: fused.Near, room: fused.Room) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """What a layer does with rows, of its input and its increment."""
    gate = fused.Gate(near, layer.scale, 1.0, EPS)
    route, mix = fused.Route(layer.router.weight, TOP_K), fused.Mix(near, layer.scale, 1.0, EPS)
    return {
        "torch.empty_like": lambda x, m: torch.empty_like(m),
        "gate": lambda x, m: gate(m, room),
        "route and mix": lambda x, m: mix(m, route(x, room), room),
    }


def room(threads: int, ids: Tensor) -> fused.Room:
    """Of a pass whose kernels have so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found = fused.Room(ids.shape, WIDTH, fused.Places.of(ids), LAYERS)
    torch.set_num_threads(before)
    return found


def rows(table: Tensor, layer: int, ids: Tensor) -> fused.Near:
    """A layer's part of the records [V, L * E * D] of some tokens."""
    size = table.element_size() * WIDTH
    base, stride = table.data_ptr() + layer * EXPERTS * size, table.shape[1] * table.element_size()
    return fused.Near(base, stride, len(table), ids.flatten(), fused.KINDS[table.dtype], size, 0, table)


def one_pass(layers: list[Layer], table: Tensor, what: str, positions: int, turn: int) -> list[list[float]]:
    """Microseconds of the layers whose kernels had one thread, and of those that had all."""
    ids, x = torch.randint(TOKENS, (1, positions)), torch.randn(1, positions, WIDTH).bfloat16()
    rooms = [room(1, ids), room(torch.get_num_threads(), ids)]
    ready = [
        calls(layer, rows(table, number, ids), rooms[(number + turn) % 2])[what]
        for number, layer in enumerate(layers)
    ]
    found: list[list[float]] = [[], []]
    for number, layer in enumerate(layers):
        m = layer(x)
        started = time.perf_counter()
        ready[number](x, m)
        found[(number + turn) % 2].append(1e6 * (time.perf_counter() - started))
        x = x + 0.01 * m
    return found


@torch.inference_mode()
def main() -> None:
    """Measure in turns, and write cold.csv."""
    torch.manual_seed(0)
    layers = [Layer() for _ in range(LAYERS)]
    table = torch.randn(TOKENS, LAYERS * EXPERTS * WIDTH).bfloat16()
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("what", "positions", "threads", "layers", "low", "median", "high"))
        cases = [("torch.empty_like", 1), *((w, p) for w in ("gate", "route and mix") for p in POSITIONS)]
        for what, positions in cases:
            turns = [one_pass(layers, table, what, positions, turn) for turn in range(TURNS + 1)][1:]
            for which, threads in enumerate((1, torch.get_num_threads())):
                each = [value for turn in turns for value in turn[which]]
                spread = [f"{value:.1f}" for value in statistics.quantiles(each, n=4)]
                writer.writerow((what, positions, threads, len(each), *spread))
                print(what, positions, "positions,", threads, "threads: us", *spread, flush=True)


if __name__ == "__main__":
    main()
