"""`retoken bench lookup`: rows looked up and used by the fused CPU kernels and by others, ratios first."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from retoken.cli.options import as_json
from retoken.errors import ConfigError

WIDE = ("float32", "bfloat16")
WITHOUT_SHORT = ("gather", "route", "gemma")
"""Operations that are timed with float32 and bfloat16 alone."""
WIDTH = 130
"""Columns where the table goes to a file."""


@dataclass(frozen=True, kw_only=True)
class BenchLookup:
    """Time looking rows up and using them on a CPU: the fused kernels against all alternatives, in turns.

    A gather alone; ReToken's gate and its folded form; MoRT's router, and its mixture with norm, scale and
    addition. Against the equations as written, eager operators, torch.compile, F.embedding_bag, FBGEMM and
    Gemma 3n's per-layer embeddings. All results are checked before they are timed.
    """

    parts: tuple[Literal["gather", "gate", "folded", "mix", "route", "gemma"], ...] = (
        "gather",
        "gate",
        "folded",
        "mix",
        "route",
        "gemma",
    )
    """What is done with the rows."""
    rows: tuple[Literal["float32", "bfloat16", "int8", "float8_e4m3"], ...] = (
        "bfloat16",
        "float32",
        "int8",
        "float8_e4m3",
    )
    """Types of rows; states are float32 with float32 rows and bfloat16 with all others."""
    tokens: tuple[int, ...] = (1, 16, 1024)
    """Tokens of a call."""
    ids: tuple[Literal["fresh", "text"], ...] = ("fresh", "text")
    """"fresh": rows that no cache holds; "text": as often as in text, drawn anew for each call."""
    mort: tuple[str, ...] = ("5,3", "4,2")
    """Modulators and how many are chosen, of MoRT."""
    vocab_size: int = 50304
    """Tokens of the tables."""
    width: int = 1536
    """Numbers a row."""
    repeats: int = 15
    """Turns of each; quartiles over them are the spread."""
    threads: int = 1
    """CPU threads of each contender."""
    compile: bool = True
    """Whether torch.compile takes part."""
    peer_python: Path | None = None
    """A Python that has fbgemm-gpu-cpu; without it that peer is left out."""
    csv: Path | None = None
    """Write all turns there."""
    json: bool = False
    """Print one JSON object."""

    def run(self) -> int:
        """Measure and print; returns the exit code."""
        self._check()
        settings = list(self._settings())
        import torch

        from retoken.bench import lookup
        from retoken.bench.lookup_turns import write
        from retoken.train import timing

        torch.set_num_threads(self.threads)
        before = timing.machine(self.threads)
        found = lookup.measure(
            settings,
            tokens=self.tokens,
            ids=self.ids,
            repeats=self.repeats,
            compiled=self.compile,
            peer_python=self.peer_python,
            tell=lambda title: print(f"timing {title}", file=sys.stderr, flush=True),
        )
        machine = before | {"load_after": timing.machine()["load"]}
        if self.csv:
            write(self.csv, found.turns)
        if self.json:
            rates = [asdict(rate) for rate in found.rates]
            print(
                as_json(
                    {"machine": machine, "bandwidth": found.bandwidth, "rates": rates, "peers": found.peers}
                )
            )
        else:
            _show(Console(width=None if sys.stdout.isatty() else WIDTH), found)
            print(f"machine: {machine}")
        return 0

    def _settings(self) -> Iterator[Any]:
        from retoken.bench.lookup_room import Setting

        shape = {"vocab_size": self.vocab_size, "width": self.width}
        mort = [_mort(each) for each in self.mort]
        kinds = {"mix": mort, "route": mort, "gemma": [(1, 1), *mort[:1]]}
        for part in self.parts:
            for experts, top_k in kinds.get(part, [(1, 1)]):
                for rows in self.rows:
                    if rows in WIDE or part not in WITHOUT_SHORT:
                        yield Setting(operation=part, rows=rows, experts=experts, top_k=top_k, **shape)

    def _check(self) -> None:
        for name in ("vocab_size", "width", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} is {getattr(self, name)}; accepted: from 1")
        if self.repeats < 2:
            raise ConfigError(f"--repeats is {self.repeats}; accepted: from 2")
        for name in ("parts", "rows", "ids", "mort"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is empty; accepted: one or more")
        if not self.tokens or min(self.tokens) < 1:
            raise ConfigError(f"--tokens is {list(self.tokens)}; accepted: one or more, from 1")
        if self.csv and not self.csv.parent.is_dir():
            raise ConfigError(f"--csv is {self.csv}, whose folder does not exist; accepted: a file to write")


def _mort(text: str) -> tuple[int, int]:
    """(E, K) of "E,K"."""
    try:
        experts, top_k = (int(part) for part in text.split(","))
    except ValueError:
        experts, top_k = 0, 0
    if not 1 <= top_k <= experts or experts < 2:
        raise ConfigError(f"--mort has {text!r}; accepted: E,K with 1 <= K <= E and E from 2, as 5,3")
    return experts, top_k


def _show(console: Console, found: Any) -> None:
    for setting, rates in groupby(found.rates, key=lambda rate: rate.setting):
        console.print(_table(setting, list(rates)))
    print(f"memory bandwidth: {found.bandwidth:.1f} GB/s, the faster of a sum and a copy of 96 MiB")
    for said in found.peers:
        print(f"peer: {said}")
    for line in losses(found.rates):
        print(line)


def _table(setting: Any, rates: Sequence[Any]) -> Table:
    names = (
        "T",
        "ids",
        "contender",
        "does",
        "ours is faster",
        "of bandwidth",
        "us a call",
        "bound",
        "rows/s",
    )
    title = f"{setting.title}, D={setting.width}, V={setting.vocab_size:,}; ratios with quartiles"
    table = Table(*names, title=title, box=None)
    for rate in rates:
        reads = rate.of_bandwidth is not None
        table.add_row(
            *(str(rate.tokens), rate.ids, rate.name, rate.does),
            "" if rate.ours_over_it.low == rate.ours_over_it.high == 1 else _times(rate.ours_over_it),
            f"{rate.of_bandwidth.median:.2f}" if reads else "",
            f"{rate.microseconds.median:,.1f}",
            f"{rate.bound_microseconds:,.1f}" if reads else "",
            f"{rate.rows_per_second:,.0f}" if reads else "",
        )
    return table


def losses(rates: Sequence[Any]) -> list[str]:
    """Lines that name whatever was faster than the fused kernels in the median; parts of the work last."""
    faster = [rate for rate in rates if rate.ours_over_it.median < 1]
    lost = [f"lost to {_named(rate)}" for rate in faster if rate.does == "whole"]
    part = [f"takes longer than a part, {_named(rate)}" for rate in faster if rate.does != "whole"]
    return [*(lost or ["the fused kernels lost to nothing that does the same"]), *part]


def _named(rate: Any) -> str:
    ids = "" if rate.ids == "none" else f", {rate.ids} ids"
    return f"{rate.name}: {rate.setting.title}, T={rate.tokens}{ids}, {_times(rate.ours_over_it)}"


def _times(spread: Any) -> str:
    return f"{spread.median:.2f} ({spread.low:.2f} to {spread.high:.2f})"
