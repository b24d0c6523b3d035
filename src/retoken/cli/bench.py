"""`retoken bench`: side-by-side timings, ratios first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from retoken import presets
from retoken.cli.bench_decode import BenchDecode
from retoken.cli.bench_exchange import BenchExchange
from retoken.cli.bench_kernels import BenchKernels
from retoken.cli.bench_lookup import BenchLookup
from retoken.cli.bench_optimizer import BenchOptimizer
from retoken.cli.options import as_json
from retoken.errors import ConfigError
from retoken.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class BenchTrain:
    """Time ReToken and MoRT against the plain backbone in turns on this machine; ratios come first.

    The training loop over a bare step, forward and training throughput of the three variants, eager and
    compiled, and the operators a step spends its time in.
    """

    preset: Annotated[str, tyro.conf.Positional] = "cpu-s"
    """Backbone by preset name; `retoken presets` lists them."""
    data: Path | None = None
    """Token store written by `retoken prepare`; without it one is made of the prose this Python carries."""
    modes: tuple[Literal["eager", "compiled"], ...] = ("eager", "compiled")
    """With and without torch.compile."""
    parts: tuple[Literal["throughput", "overhead", "hotspots"], ...] = ("throughput", "overhead", "hotspots")
    """What to measure; tables of --vocab-sizes besides."""
    works: tuple[Literal["forward", "training"], ...] = ("forward", "training")
    """What throughput is of."""
    variants: tuple[Literal["retoken", "mort"], ...] = ("retoken", "mort")
    """What is held to the plain backbone; one at a time where memory is short."""
    repeats: int = 8
    """Turns of each variant; quartiles over them are the spread."""
    steps: int = 4
    """Training steps, or forward passes, of one turn."""
    batch_size: int | None = None
    """Sequences per step; without it the preset's."""
    context_length: int | None = None
    """Tokens per sequence; without it the preset's."""
    vocab_sizes: tuple[int, ...] = ()
    """Time training steps with tables of so many tokens, too, by touched rows and dense."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of forward and backward."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; "auto": a GPU where there is one."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves PyTorch's choice."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Measure and print; returns the exit code."""
        if self.repeats < 2 or self.steps < 1:
            raise ConfigError(
                f"--repeats is {self.repeats} and --steps {self.steps}; accepted: from 2, and from 1"
            )
        from retoken.train import bench, timing

        with TemporaryDirectory(prefix="retoken-bench-") as folder:
            config = self._config(Path(folder))
            before = timing.machine(self.threads)
            runs = _variants(config, self.variants)
            rates = self._throughput(config) if "throughput" in self.parts else []
            segments = self.repeats + 2
            overheads = [
                bench.measure_overhead(run, segments=segments) for run in runs if "overhead" in self.parts
            ]
            spots = {run.variant: bench.hotspots(run) for run in runs if "hotspots" in self.parts}
            grown = self._growth(config)
        found = {
            "machine": before | {"load_after": timing.machine()["load"]},
            "preset": self.preset,
            "throughput": [asdict(rate) for rate in rates],
            "loop_overhead": [asdict(overhead) for overhead in overheads],
            "growth": [asdict(growth) for growth in grown],
            "hotspots": {name: [asdict(spot) for spot in rows] for name, rows in spots.items()},
        }
        if self.json:
            print(as_json(found))
        else:
            _show(Console(), rates, overheads, spots)
            if grown:
                Console().print(_growth_table(grown))
            print(f"machine: {found['machine']}")
        return 0

    def _throughput(self, config: TrainConfig) -> list:
        from retoken.train.bench import measure_throughput

        return measure_throughput(
            config,
            works=self.works,
            variants=("baseline", *self.variants),
            modes=self.modes,
            steps=self.steps,
            repeats=self.repeats,
        )

    def _growth(self, config: TrainConfig) -> list:
        from retoken.bench.growth import measure_growth

        if not self.vocab_sizes:
            return []
        attached = _variants(config, self.variants)[1:]
        return [
            growth
            for run in attached
            for growth in measure_growth(run, self.vocab_sizes, steps=self.steps, repeats=self.repeats)
        ]

    def _config(self, folder: Path) -> TrainConfig:
        preset = presets.get(self.preset)
        given = {"batch_size": self.batch_size, "context_length": self.context_length}
        recipe: dict[str, Any] = preset.recipe.to_dict() | {
            key: value for key, value in given.items() if value
        }
        data = self.data or _builtin_store(folder, preset.vocab_size)
        return TrainConfig(
            out=folder / "run",
            data=data,
            preset=preset.name,
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            log_every=5,
            **recipe,
        )


Bench = (
    Annotated[BenchTrain, tyro.conf.subcommand("train")]
    | Annotated[BenchDecode, tyro.conf.subcommand("decode")]
    | Annotated[BenchOptimizer, tyro.conf.subcommand("optimizer")]
    | Annotated[BenchExchange, tyro.conf.subcommand("exchange")]
    | Annotated[BenchLookup, tyro.conf.subcommand("lookup")]
    | Annotated[BenchKernels, tyro.conf.subcommand("kernels")]
)
"""`retoken bench WHAT`."""


def _builtin_store(folder: Path, vocab_size: int) -> Path:
    from retoken.data.config import PrepareConfig
    from retoken.data.prepare import prepare

    prepare(PrepareConfig(corpus="builtin", out=folder / "store", vocab_size=vocab_size))
    return folder / "store"


def _variants(config: TrainConfig, names: Sequence[str]) -> list[TrainConfig]:
    """The plain backbone, then the others."""
    import dataclasses

    return [dataclasses.replace(config, variant=name) for name in ("baseline", *names)]  # pyright: ignore[reportArgumentType]


def _show(console: Console, rates: Sequence, overheads: Sequence, spots: dict[str, list]) -> None:
    if rates:
        console.print(_rate_table(rates))
    if overheads:
        console.print(_overhead_table(overheads))
    for name, rows in spots.items():
        table = Table(
            "operator", "ms a step", "share", "calls", title=f"{name}: where a training step goes", box=None
        )
        for spot in rows:
            table.add_row(spot.operator, f"{spot.milliseconds:.2f}", f"{spot.share:.1%}", f"{spot.calls:.0f}")
        console.print(table)


def _rate_table(rates: Sequence) -> Table:
    table = Table(
        *("work", "mode", "variant", "of plain", "of eager", "tok/s"),
        title="tok/s, ratios with quartiles",
        box=None,
    )
    for rate in rates:
        speed = f"{rate.tokens_per_second.median:,.0f}"
        ratios = [_times(rate.over_plain), _times(rate.over_eager) if rate.over_eager else ""]
        table.add_row(rate.work, rate.mode, rate.variant, *ratios, speed)
    return table


def _growth_table(grown: Sequence) -> Table:
    table = Table(
        *("variant", "tables trained by", "tokens", "table params", "of the smallest", "ms a step"),
        title="training steps as tables grow (same batch, same backbone)",
        box=None,
    )
    for found in grown:
        table.add_row(
            *(found.variant, found.optimizer, f"{found.vocab_size:,}", f"{found.table_params:,}"),
            *(_times(found.over_smallest), f"{found.step_seconds.median * 1000:.1f}"),
        )
    return table


def _times(spread: Any) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def _overhead_table(overheads: Sequence) -> Table:
    names = ("over bare", "over bare + clipping", "CPU over bare", "CPU over bare + clipping")
    table = Table(
        "variant", *names, "ms a step", title="the loop's own overhead (median, quartiles)", box=None
    )
    for found in overheads:
        spreads = (found.over_bare, found.over_clipped, found.cpu_over_bare, found.cpu_over_clipped)
        cells = [f"{s.median:+.1%} ({s.low:+.1%} to {s.high:+.1%})" for s in spreads]
        table.add_row(found.variant, *cells, f"{found.step_seconds.median * 1000:.1f}")
    return table
