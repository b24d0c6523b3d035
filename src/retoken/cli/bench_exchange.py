"""`retoken bench exchange`: embedding parallel against no tables, naive ways and TorchRec, ratios first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from retoken import presets
from retoken.cli.options import as_json
from retoken.errors import ConfigError
from retoken.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class BenchExchange:
    """Time the exchange of rows between gloo ranks on this machine, in turns.

    "alone": rows of all layers fetched, used and moved, in every layout and exchange, against TorchRec's
    row-wise sharding of the same ids. "ladder": training steps with replicated tables, sharded, deduplicated,
    early and mixed, over those of the plain backbone. Beside bytes stands what the plan says of them.
    """

    preset: Annotated[tuple[str, ...], tyro.conf.Positional] = ("cpu-m",)
    """Backbones of the ladder, by preset name."""
    parts: tuple[Literal["alone", "ladder"], ...] = ("alone", "ladder")
    """What to time."""
    variants: tuple[Literal["retoken", "mort"], ...] = ("mort",)
    """What the ladder attaches."""
    data: Path | None = None
    """Token store written by `retoken prepare`; without it one is made of the prose this Python carries."""
    ranks: int = 4
    """Processes."""
    threads: int = 1
    """CPU threads of each."""
    repeats: int = 8
    """Turns of each case; quartiles over them are the spread."""
    steps: int = 3
    """Steps of one turn."""
    naive: bool = True
    """Whether the ladder has its first rung, which takes 16 bytes a table parameter on each rank."""
    batch_size: int | None = None
    """Sequences per step of the ladder, over all ranks; without it the preset's."""
    context_length: int | None = None
    """Tokens per sequence of the ladder; without it the preset's."""
    tokens: int = 2048
    """Tokens of a rank's pass, alone."""
    layers: int = 6
    """Tables, alone."""
    width: int = 256
    """Numbers a row, alone."""
    peer_python: Path | None = None
    """A Python that has torchrec and fbgemm-gpu-cpu; without it that peer is left out."""
    turns_csv: Path | None = None
    """Write every turn there."""
    csv: Path | None = None
    """Write the median step of each rung there, for `retoken plan --fit`."""
    held_out: tuple[str, ...] = ()
    """Presets whose steps only check that fit."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Measure and print; returns the exit code."""
        self._check()
        from retoken.bench.exchange import Measured
        from retoken.train import timing

        before = timing.machine(self.threads)
        with TemporaryDirectory(prefix="retoken-bench-") as folder:
            data = self.data or _builtin_store(Path(folder), presets.get(self.preset[0]).vocab_size)
            alone = self._alone(data) if "alone" in self.parts else None
            found = Measured(alone=alone, ladders=self._ladders(data, Path(folder)))
        machine = before | {"load_after": timing.machine()["load"]}
        if self.turns_csv:
            found.write_turns(self.turns_csv)
        if self.csv:
            found.write_steps(self.csv, self.held_out)
        if self.json:
            print(as_json({"machine": machine} | found.to_dict()))
        else:
            _show(Console(), found)
            print(f"machine: {machine}")
        return 0

    def _check(self) -> None:
        for name, least in (("ranks", 2), ("repeats", 2), ("steps", 1), ("threads", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name} is {getattr(self, name)}; accepted: from {least}")
        for name in ("tokens", "layers", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}; accepted: from 1")
        strangers = sorted(set(self.held_out) - set(self.preset))
        if strangers:
            raise ConfigError(f"--held-out has {strangers[0]}; accepted: of {', '.join(self.preset)}")
        if not self.preset or not self.parts or not self.variants:
            raise ConfigError("preset, --parts and --variants have nothing; accepted: one or more")

    def _alone(self, data: Path) -> Any:
        from retoken.bench import alone
        from retoken.data.tokens import TokenStore

        context = self.context_length or min(self.tokens, 256)
        size = alone.Size(tokens=self.tokens, context_length=context, layers=self.layers, width=self.width)
        return alone.measure(
            TokenStore.open(data),
            size,
            ranks=self.ranks,
            threads=self.threads,
            steps=self.steps,
            repeats=self.repeats,
            peer_python=self.peer_python,
        )

    def _ladders(self, data: Path, folder: Path) -> list:
        from retoken.bench import climb

        if "ladder" not in self.parts:
            return []
        configs = [self._config(name, data, folder) for name in self.preset]
        return [
            climb.measure(
                dataclasses.replace(config, variant=variant),
                ranks=self.ranks,
                naive=self.naive,
                steps=self.steps,
                repeats=self.repeats,
            )
            for config in configs
            for variant in self.variants
        ]

    def _config(self, name: str, data: Path, folder: Path) -> TrainConfig:
        preset = presets.get(name)
        given = {"batch_size": self.batch_size, "context_length": self.context_length}
        recipe = preset.recipe.to_dict() | {key: value for key, value in given.items() if value}
        options: dict[str, Any] = recipe | {"variant": "mort", "device": "cpu", "compile": "off"}
        return TrainConfig(out=folder / "run", data=data, preset=preset.name, threads=self.threads, **options)


def _builtin_store(folder: Path, vocab_size: int) -> Path:
    from retoken.data.config import PrepareConfig
    from retoken.data.prepare import prepare

    prepare(PrepareConfig(corpus="builtin", out=folder / "store", vocab_size=vocab_size))
    return folder / "store"


def _show(console: Console, found: Any) -> None:
    if found.alone:
        console.print(_alone_table(found.alone.fetchings))
        print(f"peer: {found.alone.peer}")
    for ladder in found.ladders:
        console.print(_ladder_table(ladder))


def _alone_table(fetchings: Sequence[Any]) -> Table:
    names = ("exchange", "over TorchRec", "by CPU time", "rows/s", "ms", "CPU ms", "MB sent", "planned")
    table = Table(
        *names, title="rows of all layers fetched, used and moved (ratios with quartiles)", box=None
    )
    for each in fetchings:
        ratios = [_times(ratio) if ratio else "" for ratio in (each.over_peer, each.cpu_over_peer)]
        times = [f"{1000 * spread.median:.1f}" for spread in (each.step_seconds, each.cpu_seconds)]
        size = [_megabytes(each.sent), _agreed(each.sent, each.planned)]
        table.add_row(each.name, *ratios, f"{each.rows_per_second.median:,.0f}", *times, *size)
    return table


def _ladder_table(ladder: Any) -> Table:
    from retoken.bench.climb import JTOK

    names = ("rung", "of no tables", "by CPU time", "JTok", "tok/s", "MB sent", "planned", "expected")
    sizes = [f"{size / 1e6:.1f}M" for size in (ladder.backbone_params, ladder.table_params)]
    title = f"{ladder.name}: {sizes[0]} in the backbone, {sizes[1]} in tables"
    table = Table(*names, title=title, box=None)
    for rung in ladder.rungs:
        jtok = f"{JTOK[rung.name]:.2f}" if rung.name in JTOK else ""
        size = [_megabytes(rung.sent), _megabytes(rung.planned), _megabytes(rung.expected)]
        if rung.sent is not None:
            size[1] = "the same" if rung.exact else _agreed(rung.sent, rung.planned)
        speed = f"{rung.tokens_per_second.median:,.0f}"
        table.add_row(rung.name, _times(rung.of_base), _times(rung.cpu_of_base), jtok, speed, *size)
    return table


def _times(spread: Any) -> str:
    return f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})"


def _megabytes(size: float | None) -> str:
    return "" if size is None else f"{size / 1e6:.2f}"


def _agreed(sent: float | None, planned: float | None) -> str:
    if sent is None or planned is None:
        return ""
    return "the same" if sent == planned else _megabytes(planned)
