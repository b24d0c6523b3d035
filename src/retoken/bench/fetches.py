"""The exchange alone, on one rank: rows of all layers fetched, mixed, and moved by their gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from retoken.bench.rank import Case, Cases
from retoken.parallel import Layout, ShardedRows, open_mesh

RATE = 1e-4
"""Of the plain descent that ends a step, as fused peers end theirs: rows move in place."""


class Table(nn.Module):
    """A rank's part of one layer's rows."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


class Layer(nn.Module):
    """What a source of rows looks for in a layer."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.table = Table(weight)


class Layers(nn.Module):
    """A stack of tables and nothing else."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(layer): Layer(weight) for layer, weight in enumerate(weights)})


class Kind(NamedTuple):
    """A case's name in parts: `retoken V early`."""

    modulator: str
    layout: str
    exchange: str

    @property
    def mixes(self) -> bool:
        """Whether layers choose among rows."""
        return self.modulator == "mort"


class Fetches(Cases):
    """Every layout and exchange, on tables that share their memory: one is in use at a time."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._mesh = open_mesh("cpu")
        rank = self._mesh.emp_rank
        folder = Path(options["folder"])
        self._ids = torch.from_numpy(np.load(folder / "ids.npy")[rank])
        self._chosen = torch.from_numpy(np.load(folder / "chosen.npy")[rank])
        self._vocab, self._width = options["vocab_size"], options["width"]
        self._modulators = options["modulators"]
        _, layers, tokens, top_k = self._chosen.shape
        self._weights = torch.full((tokens, top_k), 1 / top_k)
        self._gradient = torch.ones(tokens, self._width)
        largest = max(self._shape(kind).numel() for kind in map(parse, options["cases"]))
        self._memory = [torch.zeros(largest) for _ in range(layers)]
        self._sources = {name: self._source(parse(name)) for name in options["cases"]}
        self._next = 0

    def prepare(self, name: str) -> Case:
        """Steps of one case."""
        source, mixes = self._sources[name], parse(name).mixes
        source.traffic.reset()

        def steps(count: int) -> None:
            for _ in range(count):
                self._step(source, mixes, self._next % len(self._ids))
                self._next += 1

        return steps

    def report(self, name: str, steps: int) -> dict[str, Any]:
        """Bytes sent to other ranks a step, of all batches of the turn."""
        sent = self._sources[name].traffic.reset()
        return {"sent": sum(sent.values()) / steps}

    def audit(self, name: str) -> dict[str, Any]:
        """Bytes sent to other ranks for the first batch, by phase."""
        source = self._sources[name]
        source.traffic.reset()
        self._step(source, parse(name).mixes, 0)
        return {"sent": source.traffic.reset()}

    def _step(self, source: ShardedRows, mixes: bool, batch: int) -> None:
        ids, outs = self._ids[batch].unsqueeze(0), []
        fetch: Any = source.fetch(ids)  # pyright: ignore
        for layer, chosen in enumerate(self._chosen[batch]):
            fetched = fetch.arrived(layer)
            if mixes:
                weights = self._weights.clone().requires_grad_()
                outs.append(fetched.mix(chosen.unsqueeze(0), weights.unsqueeze(0))[0])
            else:
                outs.append(fetched.lookup()[0])
        torch.autograd.backward(outs, [self._gradient] * len(outs))
        descend(list(source.weights().values()))

    def _source(self, kind: Kind) -> ShardedRows:
        layout, shape = self._layout(kind), self._shape(kind)
        weights = [memory[: shape.numel()].view(shape) for memory in self._memory]
        distinct = kind.exchange != "each"
        exchange: Any = kind.exchange if distinct else "early"
        return ShardedRows(Layers(weights), self._mesh, layout, exchange, distinct)

    def _layout(self, kind: Kind) -> Layout:
        per_token = self._modulators if kind.mixes else 1
        return Layout.make(kind.layout, self._mesh.emp_size, self._vocab, per_token)  # pyright: ignore

    def _shape(self, kind: Kind) -> torch.Size:
        full = (self._vocab, self._modulators, self._width) if kind.mixes else (self._vocab, self._width)
        return torch.Size(self._layout(kind).local_shape(self._mesh.emp_rank, torch.Size(full)))


def parse(name: str) -> Kind:
    """`mort VxE routed` in parts."""
    return Kind(*name.split())


@torch.no_grad()
def descend(weights: list[nn.Parameter]) -> None:
    """Move the rows that have a gradient, and forget it."""
    for weight in weights:
        assert weight.grad is not None
        weight.index_add_(0, weight.grad.indices()[0], weight.grad.values(), alpha=-RATE)
        weight.grad = None
