"""The ladder of embedding parallel, on one rank: training steps with tables of every kind, in turns."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch.distributed as dist
from torch import Tensor

from retoken.bench.rank import Case, Cases
from retoken.data.tokens import TokenStore
from retoken.optim import lr_factor, set_lr
from retoken.parallel import ShardedRows
from retoken.plan import Grid, Tables, traffic
from retoken.train import setup
from retoken.train.config import TrainConfig
from retoken.train.furnish import Furnisher
from retoken.train.step import Stepper
from retoken.train.tables import TableOptions
from retoken.train.world import World

BASE, NAIVE, SHARDED, DEDUPLICATED = "no tables", "naive", "sharded", "deduplicated"
EXCHANGES = {SHARDED: "sharded", DEDUPLICATED: "routed", "early": "early", "mixed": "mixed"}
"""{rung: what the plan calls its exchange}; tables divided by token. All of them train one model."""
RUNGS = (BASE, NAIVE, *EXCHANGES)
ALL = ("early", "mixed")
"""Rungs that ask for rows in one request a pass."""


def rungs_of(variant: str, naive: bool) -> tuple[str, ...]:
    """Those that a variant has: without a router there is nothing to wait for, and nothing to mix."""
    has = {"mort": RUNGS, "retoken": (BASE, NAIVE, SHARDED, "early")}[variant]
    return tuple(rung for rung in has if naive or rung != NAIVE)


def config_of(options: dict[str, Any], rung: str) -> TrainConfig:
    """The run that a rung takes its steps from."""
    config = TrainConfig.from_dict(options["config"])
    if rung == BASE:
        return dataclasses.replace(config, variant="baseline", modulator=None)
    if rung == NAIVE:
        return dataclasses.replace(config, tables=TableOptions(optimizer="adamw", layout="replicated"))
    return dataclasses.replace(config, tables=TableOptions(layout="V", exchange="early"))


class Loop:
    """Steps of the training loop on batches at hand."""

    def __init__(self, config: TrainConfig, store: TokenStore, world: World, batches: int = 8) -> None:
        furnisher = Furnisher(config, store, world)
        self.model = setup.build_model(config, store, furnisher.table_for)
        self.source = furnisher.furnish(self.model)
        self.model.train()
        wrapped = world.wrap(self.model)
        optimizer = setup.build_optimizer_for(self.model, config, self.source)
        set_lr(optimizer, lr_factor(config.lr_schedule(), 0))
        self._stepper = Stepper(self.model, wrapped, optimizer, config, world, self.source)
        reader = setup.build_reader(config, store, world)
        self._batches = [reader.next_batch() for _ in range(batches)]
        self._next = 0

    def steps(self, count: int) -> None:
        """So many training steps."""
        for _ in range(count):
            self.step()

    def step(self) -> Tensor:
        """One; the batch it took, [B, S + 1]."""
        batch = self._batches[self._next % len(self._batches)]
        self._next += 1
        self._stepper.step(batch)
        return batch


class Ladder(Cases):
    """Rungs by name; those that divide tables share a model, whose source is told how to fetch."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._world = World(rank=dist.get_rank(), size=dist.get_world_size())
        store = TokenStore.open(TrainConfig.from_dict(options["config"]).data)
        self._loops: dict[str, Loop] = {}
        shared: Loop | None = None
        for rung in options["rungs"]:
            if rung in EXCHANGES and shared is not None:
                self._loops[rung] = shared
                continue
            self._loops[rung] = Loop(config_of(options, rung), store, self._world)
            shared = self._loops[rung] if rung in EXCHANGES else shared

    def prepare(self, name: str) -> Case:
        """Steps of one rung."""
        loop = self._loops[name]
        if isinstance(loop.source, ShardedRows):
            self._choose(loop.source, name)
            loop.source.traffic.reset()
        return loop.steps

    def report(self, name: str, steps: int) -> dict[str, Any]:
        """Bytes of rows and their gradients that this rank sent others, a step."""
        source = self._loops[name].source
        if not isinstance(source, ShardedRows):
            return {}
        return {"sent": sum(source.traffic.reset().values()) / steps}

    def audit(self, name: str) -> dict[str, Any]:
        """Bytes of one step by phase: sent, and planned from that step's ids and routing."""
        loop = self._loops[name]
        source = loop.source
        if not isinstance(source, ShardedRows):
            return {}
        self._choose(source, name)
        source.traffic.reset()
        ids = loop.step()[:, :-1]
        sent = source.traffic.reset()
        return {"sent": sent, "planned": self._planned(loop, source, ids, EXCHANGES[name])}

    @staticmethod
    def _choose(source: ShardedRows, rung: str) -> None:
        exchange = EXCHANGES[rung]
        source.distinct = exchange != "sharded"
        source.exchange = exchange if source.distinct else "early"  # pyright: ignore

    def _planned(self, loop: Loop, source: ShardedRows, ids: Tensor, option: str) -> dict[str, int]:
        """Of this rank, from what all ranks asked for and chose."""
        stack: Any = loop.model.retoken
        chosen = [routing.chosen_TK.numpy() for _, routing in sorted((stack.routings or {}).items())]
        everyone: list[Any] = [None] * self._world.size
        dist.all_gather_object(everyone, (ids.numpy(), chosen))
        config = loop.model.config.get_text_config()
        tables = Tables.of(
            stack.config,
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_layers=config.num_hidden_layers,
        )
        grid = Grid(vocab_shards=source.layout.vocab_shards, modulator_shards=source.layout.modulator_shards)
        routed = [choices for _, choices in everyone] if tables.mixes else None
        found = traffic.of_requests([each for each, _ in everyone], tables, grid, option, routed)
        return {name: int(found.flow(name).sent[self._world.rank]) for name in found.lanes}
