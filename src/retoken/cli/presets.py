"""`retoken presets`: backbones by name, their sizes counted from the configuration, and their recipes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

import tyro

from retoken import presets
from retoken.cli.options import as_json
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.errors import ConfigError
from retoken.presets import Counts, Preset

NAMES = {"baseline": "nothing attached", "retoken": "ReToken", "mort": "MoRT"}


@dataclass(frozen=True, kw_only=True)
class Presets:
    """Backbones by name: the paper's and ours, counted from their configurations, and their recipes."""

    name: Annotated[str, tyro.conf.Positional] = ""
    """One preset to print in full; without it, the table of all."""
    num_modulators: int = 5
    """n_e: rows a token owns in each layer with MoRT."""
    top_k: int = 3
    """K: rows mixed per token and layer with MoRT."""
    vocab_size: int | None = None
    """Count with this many token ids in place of the preset's own; for one preset."""
    json: bool = False
    """Print one JSON object, numbers in full."""
    markdown: bool = False
    """Print the tables as Markdown."""

    def run(self) -> int:
        """Print; returns the exit code."""
        if self.json and self.markdown:
            raise ConfigError("options --json and --markdown are both given; accepted: one of the two")
        if self.vocab_size is not None and not self.name:
            raise ConfigError(
                "option --vocab-size is given without a preset; accepted: beside the name of one"
            )
        counted = [Counted(preset, self._count(preset)) for preset in self._chosen()]
        if self.json:
            print(as_json({"presets": [_as_dict(each) for each in counted]}))
        elif self.markdown:
            print("\n\n".join(_markdown(sheet) for sheet in _sheets(counted)))
        elif self.name:
            _print_one(counted[0])
        else:
            for sheet in _sheets(counted):
                _print_sheet(sheet)
        return 0

    def _chosen(self) -> tuple[Preset, ...]:
        if not self.name:
            return presets.presets()
        preset = presets.get(self.name)
        return (preset if self.vocab_size is None else replace(preset, vocab_size=self.vocab_size),)

    def _count(self, preset: Preset) -> dict[str, Counts]:
        mort = MoRTConfig(num_modulators=self.num_modulators, top_k=self.top_k)
        backbone = presets.Backbone.of(preset)
        attached: dict[str, ModulatorConfig | None] = {
            "baseline": None,
            "retoken": ReTokenConfig(),
            "mort": mort,
        }
        return {variant: backbone.count(modulator) for variant, modulator in attached.items()}


class Counted(NamedTuple):
    """A preset and its numbers, {variant: counts}."""

    preset: Preset
    counts: Mapping[str, Counts]


class Sheet(NamedTuple):
    """A table to print; the first `left` columns are words, the others numbers."""

    columns: tuple[str, ...]
    left: int
    rows: list[tuple[str, ...]]
    legend: str


def _as_dict(counted: Counted) -> dict[str, Any]:
    counts = {variant: each.to_dict() for variant, each in counted.counts.items()}
    return {**counted.preset.to_dict(), "counts": counts}


def size(value: float, billion: str = "B") -> str:
    """A number in three digits or four, with its unit: 1.54B or 1.54G, 190.5M."""
    for unit, name in ((1e12, "T"), (1e9, billion), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * unit:
            return f"{value / unit:.{1 if value >= 99.95 * unit else 2}f}{name}"
    return f"{value:g}"


def _sheets(counted: list[Counted]) -> tuple[Sheet, Sheet]:
    """The backbones, and what attaching adds to each."""
    backbones = Sheet(
        ("preset", "family", "backbone", "no embeddings", "activated", "FLOPs/token"),
        2,
        [_backbone_row(each) for each in counted],
        "backbone: all parameters; no embeddings: nor head; activated: N_c, what a token uses\n"
        "of the latter; FLOPs/token: training, forward and backward",
    )
    tables = Sheet(
        ("preset", "with", "tables", "stored", "eta", "rho", "FLOPs/token", "more"),
        2,
        [_table_row(each, variant) for each in counted for variant in ("retoken", "mort")],
        "tables: N_n; stored: backbone, tables, scales, routers; eta: N_n / N_c; rho: rows\n"
        "used over rows owned. `retoken presets NAME` prints one in full, with its recipe",
    )
    return backbones, tables


def _backbone_row(counted: Counted) -> tuple[str, ...]:
    base = counted.counts["baseline"]
    sizes = (base.backbone_params, base.total_params, base.compute_params)
    flops = size(base.flops_per_token, "G")
    return (counted.preset.name, counted.preset.model_type, *(size(value) for value in sizes), flops)


def _table_row(counted: Counted, variant: str) -> tuple[str, ...]:
    counts = counted.counts[variant]
    more = counts.table_flops_per_token / counts.backbone_flops_per_token
    ratios = (f"{counts.eta:.1f}", f"{counts.rho:g}", size(counts.flops_per_token, "G"), f"+{more:.3%}")
    return (
        counted.preset.name,
        NAMES[variant],
        size(counts.table_params),
        size(counts.stored_params),
        *ratios,
    )


def _markdown(sheet: Sheet) -> str:
    rule = tuple("---" if i < sheet.left else "---:" for i in range(len(sheet.columns)))
    lines = "\n".join(f"| {' | '.join(line)} |" for line in (sheet.columns, rule, *sheet.rows))
    return f"{lines}\n\n{' '.join(sheet.legend.splitlines())}."


def _print_sheet(sheet: Sheet) -> None:
    if sys.stdout.isatty():
        _print_rich(sheet)
    else:
        lines = (sheet.columns, *sheet.rows)
        widths = [max(len(line[i]) for line in lines) for i in range(len(sheet.columns))]
        for line in lines:
            print(_padded(line, widths, sheet.left))
    print(f"\n{sheet.legend}\n")


def _padded(line: tuple[str, ...], widths: list[int], left: int) -> str:
    cells = enumerate(zip(line, widths, strict=True))
    return "  ".join(x.ljust(w) if i < left else x.rjust(w) for i, (x, w) in cells).rstrip()


def _print_rich(sheet: Sheet) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for i, column in enumerate(sheet.columns):
        style = "bold" if i == 0 else ""
        table.add_column(column, justify="left" if i < sheet.left else "right", style=style, no_wrap=True)
    for row in sheet.rows:
        table.add_row(*row)
    Console().print(table)


def _print_one(counted: Counted) -> None:
    """Backbone, recipe, sizes and notes of one preset."""
    preset = counted.preset
    print(f"{preset.name}: {preset.summary}")
    tokens = f"{preset.recipe.tokens} ({preset.recipe.steps} steps)"
    _section("backbone", {"family": preset.model_type, "vocab_size": preset.vocab_size, **preset.backbone})
    _section("recipe", preset.recipe.to_dict() | {"tokens": tokens})
    _section("counted", _side_by_side(counted.counts))
    if preset.notes:
        print("\n".join(("\nnotes", *(f"  - {note}" for note in preset.notes))))


def _side_by_side(counts: Mapping[str, Counts]) -> dict[str, str]:
    """A line for each number, a column for each variant."""
    numbers = {NAMES[variant]: each.to_dict() for variant, each in counts.items()}
    lines = {"": "".join(f"{name:>18}" for name in numbers)}
    for name in next(iter(numbers.values())):
        lines[name] = "".join(f"{_in_full(each[name]):>18}" for each in numbers.values())
    return lines


def _in_full(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _section(title: str, values: Mapping[str, Any]) -> None:
    print(f"\n{title}")
    for name, value in values.items():
        print(f"  {name:<26}{value}")
