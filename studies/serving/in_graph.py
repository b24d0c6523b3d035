"""What modulators cost in a compiled graph: by operators, or rows read in its loops: `in_graph.csv`.

    python studies/serving/in_graph.py [--positions 1 8 32] [--turns 200]

The matrix products, norms and residuals of SmolLM2-135M's layers, without attention, compiled as vLLM does on
a CPU. All variants share the same weights and take turns in one process: what else the machine does, and
where its memory lies, is the same for all of them.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vllm.forward_context import override_forward_context

import retoken
from retoken.bench.decode.turns import Ratio
from retoken.engines.vllm.in_graph import InGraphPasses
from retoken.engines.vllm.passes import begin
from retoken.engines.vllm.sites import install
from retoken.nn.stack import ModulatorStack, build_modulator

HERE = Path(__file__).parent
LAYERS, WIDTH, INNER, QUERIES, KEYS, ROWS = 30, 576, 1536, 576, 192, 4096
FAMILY = SimpleNamespace(mlp="mlp", increment="mlp")
MORT = retoken.MoRTConfig(num_modulators=4, top_k=2)
VARIANTS = {
    "none": (None, False),
    "none again": (None, False),
    "ReToken, operators": (retoken.ReTokenConfig(), False),
    "ReToken, in the graph": (retoken.ReTokenConfig(), True),
    "MoRT, operators": (MORT, False),
    "MoRT, in the graph": (MORT, True),
}


class Weights(nn.Module):
    """Of one layer."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {
            "qkv": (QUERIES + 2 * KEYS, WIDTH),
            "out": (WIDTH, QUERIES),
            "up": (2 * INNER, WIDTH),
            "down": (WIDTH, INNER),
        }
        for name, size in sizes.items():
            setattr(self, name, nn.Parameter(torch.randn(size, dtype=torch.bfloat16) * 0.02))


class MLP(nn.Module):
    """Gate and up in one product, down."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.up, self.down = weights.up, weights.down

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        gate, up = F.linear(x, self.up).chunk(2, -1)
        return F.linear(F.silu(gate) * up, self.down)


class Layer(nn.Module):
    """A decoder layer whose attention is its two products."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.qkv, self.out, self.mlp = weights.qkv, weights.out, MLP(weights)

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states and what is still to be added to them, [T, D] both."""
        normed, residual = _added(hidden, residual)
        hidden = F.linear(F.linear(normed, self.qkv)[:, :QUERIES], self.out)
        normed, residual = _added(hidden, residual)
        return self.mlp(normed), residual


def _added(hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    residual = hidden + residual
    wide = residual.float()
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
    return normed.to(hidden.dtype), residual


class Chain(nn.Module):
    """All layers."""

    def __init__(self, weights: list[Weights]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(one) for one in weights)

    def forward(self, hidden: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        residual = torch.zeros_like(hidden)
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return hidden + residual


def passes_of(weights: list[Weights], config: Any, in_graph: bool, positions: int) -> Callable[..., Tensor]:
    """(states, ids) -> states, compiled."""
    chain = Chain(weights)
    compiled: Any = torch.compile(chain, fullgraph=True, dynamic=False)
    if config is None:
        return lambda states, ids: compiled(states)
    modules = {n: build_modulator(config, ROWS, WIDTH, LAYERS, None, torch.bfloat16) for n in range(LAYERS)}
    stack = ModulatorStack(config, modules).eval().requires_grad_(False)
    places = install(chain.layers, FAMILY, config)  # pyright: ignore
    if not in_graph:
        return lambda states, ids: (begin(stack, modules, ids), compiled(states))[1]
    passes = InGraphPasses(stack, modules, positions)
    passes.find_rows()
    passes.enter(places)
    return lambda states, ids: (passes.begin(ids), compiled(states))[1]


def measure(weights: list[Weights], positions: int, turns: int) -> list[dict[str, object]]:
    """Turns over all variants; the first ones warm up."""
    torch._dynamo.reset()
    made = {name: passes_of(weights, *variant, positions) for name, variant in VARIANTS.items()}
    states, rows = torch.randn(positions, WIDTH, dtype=torch.bfloat16), []
    for turn in range(-3, turns):
        names = list(made) if turn % 2 else list(made)[::-1]
        for name in names:
            ids = torch.randint(ROWS, (positions,))
            start = time.perf_counter()
            made[name](states, ids)
            seconds = time.perf_counter() - start
            if turn >= 0:
                rows.append(
                    {"variant": name, "positions": positions, "turn": turn, "ms": f"{1e3 * seconds:.4f}"}
                )
    return rows


def table(rows: list[dict[str, object]]) -> str:
    """Over no modulators in the same turn: medians with their 95 % intervals, as Markdown."""
    lines = ["| positions | modulators | a pass, ms | over none | microseconds a layer |", "|---" * 5 + "|"]
    for positions in dict.fromkeys(row["positions"] for row in rows):
        here = [row for row in rows if row["positions"] == positions]
        times = {name: [float(r["ms"]) for r in here if r["variant"] == name] for name in VARIANTS}  # pyright: ignore
        for name, found in times.items():
            ratio = _spread(Ratio.of(found, times["none"]), ".3f")
            each = [1e3 * (a - b) / LAYERS for a, b in zip(found, times["none"], strict=True)]
            added = _spread(Ratio.of(each, [1.0] * len(each)), ".1f")
            lines.append(f"| {positions} | {name} | {statistics.median(found):.2f} | {ratio} | {added} |")
    return "\n".join(lines)


def _spread(found: Ratio, form: str) -> str:
    return f"{found.median:{form}} ({found.low:{form}} to {found.high:{form}})"


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--positions", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--out", type=Path, default=HERE / "in_graph.csv")
    asked = parser.parse_args()
    torch.manual_seed(0)
    torch._dynamo.config.recompile_limit = 64
    weights, rows = [Weights() for _ in range(LAYERS)], []
    with torch.inference_mode(), override_forward_context(SimpleNamespace(additional_kwargs={})):  # pyright: ignore
        for positions in asked.positions:
            rows += measure(weights, positions, asked.turns)
    with asked.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
