"""`retoken bench optimizer`: row updates against peers, ratios first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retoken.cli.options import as_json
from retoken.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BenchOptimizer:
    """Time updates of touched rows against torch's dense AdamW, its SparseAdam and FBGEMM, in turns.

    Rows a second, the share of the memory bandwidth that was measured in the same turns, over consecutive
    memory and by a bare addition to the same rows, and how time grows with the vocabulary while the touched
    rows stay as many.
    """

    vocab_sizes: tuple[int, ...] = (8192, 151936)
    """Tokens of the tables, ascending."""
    touched: int = 4096
    """Rows a step touches."""
    width: int = 768
    """Numbers a row: modulators times width."""
    repeats: int = 12
    """Turns of each; quartiles over them are the spread."""
    threads: int = 0
    """CPU threads of each contender; 0 leaves PyTorch's choice."""
    peer_python: Path | None = None
    """A Python that has fbgemm-gpu-cpu; without it that peer is left out."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Measure and print; returns the exit code."""
        self._check()
        import torch

        from retoken.bench.optimizer import measure
        from retoken.train import timing

        if self.threads:
            torch.set_num_threads(self.threads)
        before = timing.machine(self.threads)
        found = measure(
            vocab_sizes=self.vocab_sizes,
            touched=self.touched,
            width=self.width,
            repeats=self.repeats,
            peer_python=self.peer_python,
        )
        machine = before | {"load_after": timing.machine()["load"]}
        if self.json:
            print(as_json({"machine": machine, **asdict(found)}))
        else:
            _show(Console(), found)
            print(f"machine: {machine}")
        return 0

    def _check(self) -> None:
        for name in ("touched", "width"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}; accepted: from 1")
        if self.repeats < 2:
            raise ConfigError(f"--repeats is {self.repeats}; accepted: from 2")
        if not self.vocab_sizes or min(self.vocab_sizes) < 1:
            raise ConfigError(f"--vocab-sizes is {list(self.vocab_sizes)}; accepted: one or more, from 1")


def _show(console: Console, found: Any) -> None:
    names = (
        "optimizer",
        "V",
        "of bandwidth",
        "of addition",
        "ours over it",
        "over smallest V",
        "rows/s",
        "GB/s",
    )
    title = f"{found.touched} rows of {found.width} numbers, ratios with quartiles"
    table = Table(*names, title=title, box=None)
    for rate in found.rates:
        cells = (
            _times(rate.of_bandwidth),
            _times(rate.of_addition),
            _times(rate.ours_over_it),
            _times(rate.growth) if rate.growth else "",
        )
        speed = (f"{rate.rows_per_second.median:,.0f}", f"{rate.gigabytes_per_second:.1f}")
        table.add_row(rate.name, f"{rate.vocab_size:,}", *cells, *speed)
    console.print(table)
    streams = ", ".join(f"{name} {speed:.1f}" for name, speed in found.streams.items())
    print(f"memory bandwidth: {found.bandwidth:.1f} GB/s, the fastest of {streams}")
    print(f"peer: {found.peer}")


def _times(spread: Any) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"
