"""The runs of a study: isocompute grids, variants and controls at their optima (the stages of Sec. 4.3.1).

What depends on the grid's results is planned twice: provisionally, at the middle size of each budget, so that
its cost is known; and for good, once the grid of that budget is finished.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from retoken.errors import ConfigError
from retoken.presets import Backbone, Counts
from retoken.study import shapes
from retoken.study.cell import KAPLAN_FLOPS, Cell, Stage, budget_name, make_cell, modulator_of
from retoken.study.config import StudyConfig, fraction
from retoken.study.optimum import Best, best_size
from retoken.study.shapes import Shape
from retoken.study.table import Row

PARABOLA_SIZES = 4
"""Fewer sizes than this at a budget are said to be few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """What the plan needs of a token store."""

    fingerprint: str
    vocab_size: int
    train_tokens: int
    val_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The runs, in the order they should be run, and what is known of the optima."""

    cells: tuple[Cell, ...]
    best: tuple[Best, ...]
    notes: tuple[str, ...]
    wanted: dict[str, float]
    """{name of a baseline run: the N_c its shape was chosen for}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """One way to attach tables: its label, n_e and K."""

    label: str
    variant: str
    stage: Stage
    num_modulators: int
    top_k: int


Slower = Callable[[Cell, Cell], float]
"""Expected seconds of a token of the second run over the first's."""


def build_grid(
    study: StudyConfig, data: Data, rows: Sequence[Row] = (), slower: Slower = lambda base, other: 1.5
) -> Grid:
    """All runs of a study.

    Args:
        rows: Finished runs.
        slower: For controls of equal time, until the variant's own speed is known.

    Raises:
        ConfigError: There is no budget, or one has no size that the data suffices for.
    """
    if not study.budgets:
        raise ConfigError("budgets is empty; accepted: training FLOPs such as 6e11 1e12, one or more")
    return _Builder(study, data, rows, slower).build()


class _Builder:
    def __init__(self, study: StudyConfig, data: Data, rows: Sequence[Row], slower: Slower) -> None:
        self.study, self.data, self.slower = study, data, slower
        self.rows = {row.id: row for row in rows}
        self.notes: list[str] = []
        self.wanted: dict[str, float] = {}
        self._backbones: dict[Shape, Backbone] = {}

    def build(self) -> Grid:
        cells: dict[str, Cell] = {}
        best: list[Best] = []
        for backbone, budgets in (("dense", self.study.budgets), ("mixture", self.study.mixture_budgets)):
            for budget in sorted(budgets):
                for cell in self._budget(backbone, budget, best):
                    cells.setdefault(cell.id, cell)
        return Grid(
            cells=tuple(cells.values()), best=tuple(best), notes=tuple(self.notes), wanted=self.wanted
        )

    def _budget(self, backbone: Any, budget: float, best: list[Best]) -> Iterator[Cell]:
        sizes = self._sizes(backbone, budget)
        grid = [self._baseline(shape, budget, seed) for shape in sizes for seed in self.study.seeds]
        yield from grid
        known = self._best(backbone, budget, grid)
        best += [known] if known else []
        for shape in self._variant_shapes(backbone, known, sizes):
            provisional = known is None and self.study.at == "optimum"
            yield from self._variants(shape, budget, provisional)
            if backbone == "dense" and budget in self.study.control_budgets:
                yield from self._controls(shape, budget, provisional)

    def _sizes(self, backbone: Any, budget: float) -> list[Shape]:
        study = self.study
        middle = self._middle(budget)
        steps = [i - (study.sizes_per_budget - 1) / 2 for i in range(study.sizes_per_budget)]
        wanted = sorted(study.sizes) or [middle * study.spacing**step for step in steps]
        found: dict[Shape, float] = {}
        for size in wanted:
            shape = shapes.near(backbone, size)
            tokens = self._tokens(shape, budget)
            if tokens > study.max_epochs * self.data.train_tokens:
                self.notes.append(
                    f"{backbone} {budget_name(budget)}: {shape.preset} is left out, its {tokens / 1e6:.2f}M "
                    f"tokens are more than {study.max_epochs:g} times the split's "
                    f"{self.data.train_tokens / 1e6:.2f}M"
                )
                continue
            found.setdefault(shape, size)
        if not found:
            raise ConfigError(
                f"budgets has {budget:g}, which no size can spend on {self.data.train_tokens} tokens; "
                "accepted: a smaller budget, larger sizes, or more max_epochs"
            )
        if len(found) < PARABOLA_SIZES:
            self.notes.append(
                f"{backbone} {budget_name(budget)}: {len(found)} sizes; a parabola asks for {PARABOLA_SIZES}"
            )
        self.wanted |= {self._baseline(shape, budget, 0).name: size for shape, size in found.items()}
        return list(found)

    def _middle(self, budget: float) -> float:
        """N_c whose tokens are `tokens_per_param` times as many; of counted FLOPs, by those of the head."""
        paid = budget / (KAPLAN_FLOPS * self.study.tokens_per_param)
        size = math.sqrt(paid)
        for _ in range(50 if self.study.flops == "counted" else 0):
            head = self.data.vocab_size * shapes.usual_width(size)
            size = math.sqrt(size * paid / (size + head))  # N (N + V d) = paid, by damped steps
        return size

    def _tokens(self, shape: Shape, budget: float) -> float:
        """D of a budget, by the study's rule."""
        counts = self._counts(shape)
        a_token = KAPLAN_FLOPS * counts.compute_params if self.study.flops == "kaplan" else None
        return budget / (a_token or counts.backbone_flops_per_token)

    def _counts(self, shape: Shape, rows: Rows | None = None) -> Counts:
        if shape not in self._backbones:
            self._backbones[shape] = shape.measured(self.data.vocab_size, self.study.context_length)
        modulator = modulator_of(rows.variant, rows.num_modulators, rows.top_k) if rows else None
        return self._backbones[shape].count(modulator)

    def _baseline(self, shape: Shape, budget: float, seed: int, **other: Any) -> Cell:
        return self._cell(shape, budget, seed, stage="baseline", label=f"{shape.backbone}-baseline", **other)

    def _cell(
        self,
        shape: Shape,
        budget: float,
        seed: int,
        *,
        stage: Stage,
        label: str,
        rows: Rows | None = None,
        tokens: float | None = None,
        provisional: bool = False,
    ) -> Cell:
        return make_cell(
            self.study,
            self._counts(shape, rows),
            label=label,
            stage=stage,
            variant=rows.variant if rows else "baseline",
            backbone=shape.backbone,
            preset=shape.preset,
            shape=(shape.width, shape.layers),
            budget=budget,
            seed=seed,
            tokens=self._tokens(shape, budget) if tokens is None else tokens,
            rows=(rows.num_modulators, rows.top_k) if rows else (0, 0),
            provisional=provisional,
        )

    def _best(self, backbone: str, budget: float, grid: Iterable[Cell]) -> Best | None:
        """None until every run of the grid at this budget is there."""
        losses: dict[str, list[float]] = {}
        sizes: dict[str, int] = {}
        for cell in grid:
            if cell.id not in self.rows:
                return None
            losses.setdefault(cell.preset, []).append(self.rows[cell.id].loss)
            sizes[cell.preset] = cell.compute_params
        means = {preset: (sizes[preset], sum(found) / len(found)) for preset, found in losses.items()}
        return best_size(backbone, budget, means)

    def _variant_shapes(self, backbone: Any, known: Best | None, sizes: Sequence[Shape]) -> list[Shape]:
        if self.study.at == "all":
            return list(sizes)
        if known is None:
            return [sizes[len(sizes) // 2]]
        if self.study.optimum == "vertex" and known.found == "vertex":
            return [shapes.near(backbone, known.compute_params)]
        return [shapes.from_preset(known.nearest)]

    def _variants(self, shape: Shape, budget: float, provisional: bool) -> Iterator[Cell]:
        """Baseline and variants at one size, seed by seed within a stage."""
        mixture = shape.backbone == "mixture"
        seeds = self.study.mixture_seeds if mixture else self.study.optimum_seeds
        label = f"{shape.backbone}-baseline"
        for seed in seeds:
            yield self._cell(shape, budget, seed, stage="optimum", label=label, provisional=provisional)
        for rows in self.ways(shape):
            for seed in seeds:
                label = f"{shape.backbone}-{rows.label}"
                yield self._cell(
                    shape, budget, seed, stage=rows.stage, label=label, rows=rows, provisional=provisional
                )

    def ways(self, shape: Shape) -> Iterator[Rows]:
        """ReToken, MoRT at every eta with all rows used, and at the last eta with fewer."""
        study = self.study
        yield Rows(label="retoken", variant="retoken", stage="frontier", num_modulators=1, top_k=1)
        rhos = {text: fraction(text) for text in study.rhos}
        for eta in study.etas:
            last = eta == study.etas[-1]
            multiple = math.lcm(*(rho.denominator for rho in rhos.values())) if last else 1
            count = self.modulators(shape, eta, multiple)
            stage: Stage = "frontier" if eta == study.etas[0] else "ratio"
            yield self._mort(eta, "1", stage, count, count)
            for text, rho in rhos.items() if last else ():
                if rho < 1:
                    yield self._mort(eta, text, "sparsity", count, max(1, round(count * rho)))

    def _mort(self, eta: float, rho: str, stage: Stage, count: int, top_k: int) -> Rows:
        label = f"mort-eta{eta:g}-rho{rho.replace('/', 'of')}"
        return Rows(label=label, variant="mort", stage=stage, num_modulators=count, top_k=top_k)

    def modulators(self, shape: Shape, eta: float, multiple: int = 1) -> int:
        """n_e that comes nearest to eta = n_e V d L / N_c, a multiple of `multiple`."""
        one = Rows(label="", variant="retoken", stage="frontier", num_modulators=1, top_k=1)
        wanted = eta / self._counts(shape, one).eta
        return multiple * max(1, round(wanted / multiple))

    def _controls(self, shape: Shape, budget: float, provisional: bool) -> Iterator[Cell]:
        """For ReToken and the first MoRT: a baseline that stores as much, and one that trains as long."""
        tokens = self._tokens(shape, budget)
        for rows in list(self.ways(shape))[:2]:
            variant = self._cell(shape, budget, 0, stage=rows.stage, label=f"dense-{rows.label}", rows=rows)
            larger = shapes.near_stored("dense", variant.stored_params, self.data.vocab_size)
            ratio, measured = self._slower(shape, budget, variant)
            for seed in self.study.control_seeds:
                yield self._cell(
                    larger, budget, seed, stage="stored", label=f"dense-as-stored-as-{rows.label}",
                    tokens=tokens, provisional=provisional,
                )  # fmt: skip
                yield self._cell(
                    shape, budget, seed, stage="time", label=f"dense-as-long-as-{rows.label}",
                    tokens=tokens * ratio, provisional=provisional or not measured,
                )  # fmt: skip

    def _slower(self, shape: Shape, budget: float, variant: Cell) -> tuple[float, bool]:
        """Seconds of a token over the baseline's, of the runs at this size; or as expected."""
        base = self._baseline(shape, budget, 0)
        found = []
        for name in (base.name, variant.name):
            speeds = [
                row.tokens_per_second for row in self.rows.values() if row.id.startswith(f"{name}-seed")
            ]
            if not speeds:
                return self.slower(base, variant), False
            found.append(sum(speeds) / len(speeds))
        return found[0] / found[1], True
