"""What training costs: the loop over a bare step, and token-indexed parameters over the plain backbone."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile

from retoken.data.tokens import TokenStore
from retoken.errors import ConfigError
from retoken.optim import clip_by_norm_, lr_factor, set_lr, total_norm
from retoken.train import setup
from retoken.train.compiled import compile_for
from retoken.train.config import TrainConfig
from retoken.train.evaluate import autocast, eval_mode
from retoken.train.furnish import Furnisher
from retoken.train.loop import train
from retoken.train.metrics import Event
from retoken.train.timing import Spread, interleaved, ratios
from retoken.train.world import World, open_world

VARIANTS = ("baseline", "retoken", "mort")
MODES = {"eager": "off", "compiled": "on"}
WORKS = ("forward", "training")
Turns = dict[tuple[str, str], list[float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Overhead:
    """What the loop adds to a step, as a share of the bare step beside it."""

    variant: str
    """Which."""
    over_bare: Spread
    """Over forward, backward and optimizer step of the same model on batches at hand, by the wall clock."""
    over_clipped: Spread
    """Over the same with the gradient clipping that the recipe asks for."""
    cpu_over_bare: Spread
    """As `over_bare` in CPU seconds of this process, which other processes disturb less."""
    cpu_over_clipped: Spread
    """As `over_clipped` in CPU seconds."""
    step_seconds: Spread
    """A step of the loop, by the wall clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Tokens per second of one variant, and over the plain backbone's in the same repeat."""

    work: str
    """"forward" or "training"."""
    mode: str
    """"eager" or "compiled"."""
    variant: str
    """Which."""
    tokens_per_second: Spread
    """Over the repeats."""
    over_plain: Spread
    """Ratio to the baseline of the same work and mode."""
    over_eager: Spread | None
    """Ratio to the same variant without torch.compile; None where that was not timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hotspot:
    """One operator's own time in a training step."""

    operator: str
    """As PyTorch calls it."""
    milliseconds: float
    """Of a step, without the operators it calls."""
    share: float
    """Of the whole step."""
    calls: float
    """A step."""


class BareLoop:
    """Forward, backward, optimizer step, and nothing else: what a loop cannot do without."""

    def __init__(
        self, config: TrainConfig, store: TokenStore, world: World, *, batches: int = 8, table_vocab: int = 0
    ) -> None:
        """`table_vocab`: tokens the tables have rows for, the backbone's own first; 0: those only."""
        furnisher = Furnisher(config, store, world)
        self.model = setup.build_model(config, store, furnisher.table_for).train()
        if table_vocab and config.attached is not None:
            self.model.retoken.resize(table_vocab)  # pyright: ignore
        source = furnisher.furnish(self.model)
        self._config, self._world = config, world
        self._forward = compile_for(config, self.model, setup.count(config, self.model))
        self._optimizer = setup.build_optimizer_for(self.model, config, source)
        set_lr(self._optimizer, lr_factor(config.lr_schedule(), 0))
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        reader = setup.build_reader(config, store, world)
        windows = [reader.next_batch() for _ in range(batches)]
        self._batches = [(w[:, :-1].contiguous(), w[:, 1:].contiguous()) for w in windows]

    def train(self, steps: int, *, clip: bool) -> None:
        """So many training steps."""
        for ids, targets in self._some(steps):
            with autocast(self._world.device, self._config.arithmetic):
                outputs = self._forward(input_ids=ids, labels=targets, shift_labels=targets, use_cache=False)
            outputs.loss.backward()
            if clip:
                norm = total_norm(self._parameters)
                clip_by_norm_(self._parameters, self._config.grad_clip or float("inf"), norm)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def forward(self, steps: int) -> None:
        """So many forward passes, logits included."""
        with eval_mode(self.model), autocast(self._world.device, self._config.arithmetic):
            for ids, _ in self._some(steps):
                self._forward(input_ids=ids, use_cache=False)

    def _some(self, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(steps):
            yield self._batches[step % len(self._batches)]


def measure_overhead(config: TrainConfig, *, segments: int = 20) -> Overhead:
    """Time `train` itself, its reading, metrics and files included, against bare loops on the same batches.

    After every line of metrics (`log_every` steps of the loop) the bare loops take as many steps: all three
    see the machine in the same state. Evaluation and checkpoints are in neither, as they are not in a run's
    "seconds".

    Args:
        config: The run to time; its folder, length and evaluations are replaced. Whole batches only.
        segments: How many such rounds; the first two warm up.
    """
    if config.micro_batch_size:
        raise ConfigError(
            f"micro_batch_size is {config.micro_batch_size}; accepted by the overhead's bench: 0"
        )
    with open_world(config.device, config.threads) as world, TemporaryDirectory() as folder:
        rounds = _Rounds(config, world)
        train(_short(config, Path(folder) / "run", segments * config.log_every), on_event=rounds)
    wall, cpu = rounds.seconds(0), rounds.seconds(1)
    return Overhead(
        variant=config.variant,
        over_bare=_excess(wall["loop"], wall["bare"]),
        over_clipped=_excess(wall["loop"], wall["clipped"]),
        cpu_over_bare=_excess(cpu["loop"], cpu["bare"]),
        cpu_over_clipped=_excess(cpu["loop"], cpu["clipped"]),
        step_seconds=Spread.of([seconds / config.log_every for seconds in wall["loop"]]),
    )


class _Rounds:
    """Listens to a run and puts as many bare steps behind each of its lines."""

    def __init__(self, config: TrainConfig, world: World) -> None:
        self._found: dict[str, list[tuple[float, float]]] = {"loop": [], "bare": [], "clipped": []}
        self._steps = config.log_every
        self._beside = BareLoop(config, TokenStore.open(config.data), world)
        self._since = _clocks()

    def seconds(self, clock: int) -> dict[str, list[float]]:
        """Of each loop a round, without the first two: 0 for the wall clock, 1 for CPU time."""
        return {name: [pair[clock] for pair in pairs[2:]] for name, pairs in self._found.items()}

    def __call__(self, event: Event) -> None:
        if event["kind"] == "train":
            self._note("loop")
            order = ("bare", "clipped") if len(self._found["loop"]) % 2 else ("clipped", "bare")
            for name in order:
                self._beside.train(self._steps, clip=name == "clipped")
                self._note(name)
        self._since = _clocks()

    def _note(self, name: str) -> None:
        now = _clocks()
        self._found[name].append((now[0] - self._since[0], now[1] - self._since[1]))
        self._since = now


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def measure_throughput(
    config: TrainConfig,
    *,
    works: Sequence[str] = WORKS,
    variants: Sequence[str] = VARIANTS,
    modes: Sequence[str] = ("eager", "compiled"),
    steps: int = 4,
    repeats: int = 8,
) -> list[Throughput]:
    """Plain backbone, ReToken and MoRT, eager and compiled, in turns: forward and training.

    Args:
        config: Preset, data, batch and arithmetic; the variants get their default modulators.
        works: "forward", "training" or both.
        variants: The baseline and what is to be held to it.
        modes: "eager", "compiled" or both. Compilation itself is not timed.
        steps: Of one turn.
        repeats: Turns.
    """
    with open_world(config.device, config.threads) as world:
        store = setup.open_store(config)
        pairs = [(mode, variant) for mode in modes for variant in variants]
        loops = {pair: BareLoop(_as(config, *pair), store, world) for pair in pairs}
        found: list[Throughput] = []
        for work in works:
            cases = {pair: functools.partial(_turn, loop, work, steps) for pair, loop in loops.items()}
            seconds = interleaved(cases, repeats=repeats, warmup=2)
            found += [_throughput(work, *pair, seconds, steps * config.tokens_per_step) for pair in pairs]
    return found


def steps_over(
    configs: Mapping[str, TrainConfig], base: str, *, steps: int, repeats: int
) -> dict[str, Spread]:
    """Seconds of a training step over those of the run called `base`, in turns; without the base itself.

    Args:
        configs: Runs by name, on one device.
        base: The one that the others are held to.
        steps: Of one turn.
        repeats: Turns.
    """
    with open_world(configs[base].device, configs[base].threads) as world:
        loops = {name: BareLoop(config, setup.open_store(config), world) for name, config in configs.items()}
        turns = {name: functools.partial(loop.train, steps, clip=True) for name, loop in loops.items()}
        seconds = interleaved(turns, repeats=repeats, warmup=2)
    return {name: ratios(seconds[name], seconds[base]) for name in configs if name != base}


def hotspots(config: TrainConfig, *, steps: int = 5, rows: int = 12) -> list[Hotspot]:
    """The operators that a training step of `config` spends most of its own time in, the largest first."""
    with open_world(config.device, config.threads) as world:
        loop = BareLoop(config, setup.open_store(config), world)
        loop.train(3, clip=True)
        recorded = profile()
        with _silent_stderr(), recorded:
            loop.train(steps, clip=True)
    operators = sorted(recorded.key_averages(), key=lambda found: found.self_cpu_time_total, reverse=True)
    total = sum(found.self_cpu_time_total for found in operators)
    return [
        Hotspot(
            operator=found.key,
            milliseconds=found.self_cpu_time_total / 1000 / steps,
            share=found.self_cpu_time_total / total,
            calls=found.count / steps,
        )
        for found in operators[:rows]
    ]


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Some builds of PyTorch's profiler announce themselves there, below Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _turn(loop: BareLoop, work: str, steps: int) -> None:
    if work == "forward":
        loop.forward(steps)
    else:
        loop.train(steps, clip=True)


def _throughput(work: str, mode: str, variant: str, seconds: Turns, tokens: int) -> Throughput:
    ours, eager = seconds[mode, variant], seconds.get(("eager", variant))
    return Throughput(
        work=work,
        mode=mode,
        variant=variant,
        tokens_per_second=Spread.of([tokens / found for found in ours]),
        over_plain=ratios(seconds[mode, "baseline"], ours),
        over_eager=ratios(eager, ours) if eager else None,
    )


def _as(config: TrainConfig, mode: str, variant: str) -> TrainConfig:
    changes: dict[str, Any] = {"variant": variant, "modulator": None, "compile": MODES[mode]}
    return dataclasses.replace(config, **changes)


def _short(config: TrainConfig, out: Path, steps: int) -> TrainConfig:
    changes: dict[str, Any] = {"out": out, "steps": steps, "eval_every": 0, "checkpoint_every": 0}
    return dataclasses.replace(config, **changes, eval_tokens=config.tokens_per_step)


def _excess(of: Sequence[float], to: Sequence[float]) -> Spread:
    spread = ratios(of, to)
    return Spread(median=spread.median - 1, low=spread.low - 1, high=spread.high - 1)
