"""The tables of results.md: python studies/scaling/summary.py > studies/scaling/results.md.

Differences are between runs of one budget, size and seed, with 95 % intervals by Student's t over the seeds,
or over budgets and seeds. No law is fitted but the baseline's own frontier, a line of log loss over log
compute for each seed.
"""

from __future__ import annotations

import csv
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import linregress

from retoken.compare.stats import mean_interval, t95
from retoken.compare.verdict import plus_minus
from retoken.scaling.etalaw import fit_eta_law
from retoken.study.cell import CONTROLS
from retoken.study.table import Row, read_rows

HEAD = "What `python studies/scaling/summary.py` makes of [runs.csv](runs.csv); [what it says](README.md)."
EQUAL_TIME = Path(__file__).with_name("equal_time.csv")
Group = dict[int, Row]
"""{seed: run}."""
Key = tuple[float, str]
"""(budget, what was run without its seed and budget)."""


class Backbone:
    """The runs of one backbone at its best sizes, and the controls."""

    def __init__(self, name: str, rows: Iterable[Row]) -> None:
        own = [row for row in rows if row.backbone == name]
        best = {(row.budget, row.hidden_size, row.layers) for row in own if row.stage == "frontier"}
        self.groups: dict[Key, Group] = defaultdict(dict)
        self.controls: dict[Key, Group] = defaultdict(dict)
        for row in own:
            if row.stage in CONTROLS:
                self.controls[row.budget, _controlled(row)][row.seed] = row
            elif (row.budget, row.hidden_size, row.layers) in best:
                self.groups[row.budget, _named(row)][row.seed] = row
        self.budgets = sorted({budget for budget, _ in self.groups})
        self.names = sorted(
            {name for _, name in self.groups} - {"baseline"}, key=lambda each: (each != "retoken", each)
        )

    def pairs(self, budget: float, ours: str, theirs: str = "baseline") -> list[tuple[Row, Row]]:
        """Runs of the same seed."""
        return _pairs(self.groups.get((budget, ours), {}), self.groups.get((budget, theirs), {}))

    def exponent(self, seed: int) -> float:
        """x of L* ~ C^-x, over the seed's own baselines at the best sizes."""
        base = [self.groups[budget, "baseline"] for budget in self.budgets]
        points = [(math.log(b), math.log(g[seed].loss)) for b, g in zip(self.budgets, base, strict=True)]
        return float(-np.polyfit(*zip(*points, strict=True), deg=1)[0])


def _named(row: Row) -> str:
    """A variant with its nominal eta, which the run's id has, and its rho."""
    found = re.search(r"(mort-eta\d+-rho\w+?|retoken|baseline)-\d", row.id)
    return found[1] if found else row.variant


def _controlled(row: Row) -> str:
    found = re.search(r"as-\w+-as-(.+?)-\d\.", row.id)
    return f"{row.stage} {found[1]}" if found else row.stage


def _pairs(ours: Group, theirs: Group) -> list[tuple[Row, Row]]:
    return [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def _difference(pairs: Sequence[tuple[Row, Row]]) -> str:
    return plus_minus(ours.loss - theirs.loss for ours, theirs in pairs)


def _table(heads: str, lines: Iterable[Sequence[str]]) -> None:
    print(f"\n| {heads} |\n|{'---|' * (heads.count('|') + 1)}")
    for cells in lines:
        print(f"| {' | '.join(cells)} |")


def baselines(runs: Backbone) -> Iterable[list[str]]:
    """The frontier."""
    for budget in runs.budgets:
        group = runs.groups[budget, "baseline"]
        first = next(iter(group.values()))
        losses = [row.loss for row in group.values()]
        yield [
            *(f"{budget:.3g}", f"{first.hidden_size} x {first.layers}", f"{first.compute_params / 1e3:.0f}k"),
            *(f"{first.tokens / 1e6:.2f}M", plus_minus(losses, sign="")),
        ]


def gains(runs: Backbone) -> Iterable[list[str]]:
    """Each variant at each budget, and how much compute the baseline would take for its loss."""
    for name in runs.names:
        for budget in runs.budgets:
            if pairs := runs.pairs(budget, name):
                ours = pairs[0][0]
                logs = [math.log(b.loss / a.loss) / runs.exponent(a.seed) for a, b in pairs]
                mean, half = mean_interval(logs)
                ends = (
                    "" if half is None else f" ({math.exp(mean - half):.2f} to {math.exp(mean + half):.2f})"
                )
                yield [
                    *(name, f"{budget:.3g}", f"{ours.eta:.1f}", f"{ours.stored_params / 1e6:.2f}M"),
                    *(_difference(pairs), f"{math.exp(mean):.2f}{ends}", f"{1 - math.exp(-mean):.0%}"),
                ]


def constancy(runs: Backbone) -> Iterable[list[str]]:
    """How the relative gain changes with compute: Eq. 15 says that it does not."""
    for name in runs.names:
        points = [
            (math.log10(budget), 100 * (1 - a.loss / b.loss))
            for budget in runs.budgets
            for a, b in runs.pairs(budget, name)
        ]
        mean = f"{np.mean([gain for _, gain in points]):.2f} %"
        if len(points) > 2 and len(dict(points)) > 1:
            line = linregress(*zip(*points, strict=True))
            half = t95(len(points) - 2) * line.stderr
            yield [name, mean, f"{line.slope:+.2f} ± {half:.2f}"]


def eta(runs: Backbone) -> Iterable[list[str]]:
    """What a doubling of MoRT's tables gives, rho 1."""
    names, every = [name for name in runs.names if name.endswith("rho1")], []
    for budget in runs.budgets:
        groups = [runs.groups.get((budget, name), {}) for name in names]
        seeds = sorted(set.intersection(*(set(group) for group in groups))) if len(groups) > 1 else []
        slopes = [
            fit_eta_law([g[seed].eta for g in groups], [g[seed].loss for g in groups]).per_doubling
            for seed in seeds
        ]
        every += slopes
        if slopes:
            yield [f"{budget:.3g}", plus_minus(slopes, 4)]
    if every:
        yield ["all", plus_minus(every, 4)]


def rho(runs: Backbone) -> Iterable[list[str]]:
    """Fewer rows used of as many stored, against all of them."""
    whole = max((name for name in runs.names if name.endswith("rho1")), default="")
    for name in runs.names if whole else ():
        if name.startswith(whole.removesuffix("1")) and name != whole:
            pairs = [runs.pairs(budget, name, whole) for budget in runs.budgets]
            cells = [_difference(each) if each else "-" for each in pairs]
            yield [name, *cells, _difference([pair for each in pairs for pair in each])]


def controls(runs: Backbone) -> Iterable[list[str]]:
    """Baselines that store as much, and that train as long."""
    for (budget, name), group in sorted(runs.controls.items()):
        kind, variant = name.split(" ")
        base = _pairs(group, runs.groups[budget, "baseline"])
        ours = _pairs(runs.groups[budget, variant], group)
        first = base[0][0]
        yield [
            *(f"{budget:.3g}", variant, kind, f"{first.compute_params / 1e3:.0f}k"),
            f"{first.stored_params / 1e6:.2f}M",
            f"{first.flops_counted / base[0][1].flops_counted:.2f}",
            *(_difference(base), _difference(ours)),
        ]


def as_long(runs: Backbone) -> Iterable[list[str]]:
    """Baselines that trained for a variant's time, of steps that were timed beside its own."""
    groups: dict[Key, dict[int, dict[str, str]]] = defaultdict(dict)
    with EQUAL_TIME.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            groups[float(row["budget"]), row["variant"]][int(row["seed"])] = row
    for (budget, variant), group in sorted(groups.items()):
        base, ours = runs.groups[budget, "baseline"], runs.groups[budget, variant]
        first, losses = next(iter(group.values())), {s: float(row["val_loss"]) for s, row in group.items()}
        slower = [f"{float(first[name]):.3f}" for name in ("slower", "slower_low", "slower_high")]
        yield [
            *(f"{budget:.3g}", variant, f"{slower[0]} ({slower[1]} to {slower[2]})"),
            f"{int(first['tokens']) / 1e6:.2f}M",
            plus_minus(losses[seed] - base[seed].loss for seed in losses),
            plus_minus(ours[seed].loss - losses[seed] for seed in losses),
        ]


def hours(rows: Sequence[Row]) -> Iterable[list[str]]:
    """Of training, by stage."""
    for kind in dict.fromkeys((row.backbone, row.stage) for row in rows):
        own = [row.seconds for row in rows if (row.backbone, row.stage) == kind]
        yield [*kind, str(len(own)), f"{sum(own) / 3600:.2f}"]
    yield ["all", "", str(len(rows)), f"{sum(row.seconds for row in rows) / 3600:.2f}"]


def main() -> None:
    """Print what is there."""
    print(f"# Results\n\n{HEAD}")
    rows = read_rows(Path(__file__).with_name("runs.csv"))
    for name in dict.fromkeys(row.backbone for row in rows):
        runs = Backbone(name, rows)
        if not runs.budgets:  # its best sizes have not been found
            continue
        print(f"\n## {name.capitalize()}")
        _table("budget | shape | N_c | D | baseline's loss", baselines(runs))
        seeds = sorted(set.intersection(*(set(runs.groups[x, "baseline"]) for x in runs.budgets)))
        print(f"\nL* ~ C^-x, x {plus_minus(map(runs.exponent, seeds), 4, sign='')}.")
        _table(
            "variant | budget | eta | stored | to the baseline, nats | compute for the same loss | saved",
            gains(runs),
        )
        _table("variant | reduction, mean | points a decade of compute", constancy(runs))
        _table("budget | a doubling of eta, nats", eta(runs))
        budgets = " | ".join(f"{budget:.3g}" for budget in runs.budgets)
        _table(f"against rho 1 | {budgets} | all", rho(runs))
        if runs.controls:
            heads = "budget | as long as | a step's time over the baseline's | tokens"
            _table(f"{heads} | to the baseline | variant to it", as_long(runs))
            heads = "budget | for | as much | N_c | stored | FLOPs"
            _table(f"{heads} | to the baseline | variant to it", controls(runs))
    print("\n## Hours of training, one thread each")
    _table("backbone | stage | runs | hours", hours(rows))


if __name__ == "__main__":
    main()
