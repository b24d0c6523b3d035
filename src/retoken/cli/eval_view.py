"""What `retoken eval --tasks` shows: a bar a task on a terminal, a line a task elsewhere, and the table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from retoken.eval.differences import Difference
    from retoken.eval.scores import Score
    from retoken.eval.tasks import TasksReport


class TasksView:
    """Speaks on stderr, so that stdout is the result's."""

    def __init__(self) -> None:
        # The harness's own words on both streams are held back; this console keeps the stream of now.
        self._console = Console(file=sys.stderr)
        self._bar = _bar(self._console) if self._console.is_terminal else None

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def start(self, task: str, number: int, of: int) -> Callable[[int, int], None]:
        """A task begins; returns what is told (answers there, answers wanted)."""
        if self._bar is None:
            self._console.print(f"{task} ({number} of {of})", highlight=False)
            return lambda done, total: None
        bar = self._bar
        shown = bar.add_task(f"{number}/{of} {task}", total=None)
        return lambda done, total: bar.update(shown, completed=done, total=total)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<20}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        redirect_stdout=False,
        redirect_stderr=False,
    )


def as_values(report: TasksReport) -> dict[str, Any]:
    """The report as `--json` prints it."""
    from retoken.eval.scores import mean_score

    other = report.against
    tasks = []
    for score in report.scores:
        values = asdict(score)
        if other:
            values["difference"] = _values(other.metric.get(score.name))
            values["gold_bits_per_byte_difference"] = _values(other.bits.get(score.name))
        tasks.append(values)
    found = {
        "checkpoint": report.checkpoint,
        "out": str(report.out),
        "settings": report.settings,
        "tasks": tasks,
    }
    found["mean"] = mean_score(report.scores)
    if other:
        found["against"] = other.name
        found["mean_difference"] = _values(other.mean)
        found["mean_gold_bits_per_byte_difference"] = _values(other.mean_bits)
    return found


def _values(found: Difference | None) -> dict[str, float] | None:
    return None if found is None else asdict(found)


def print_report(report: TasksReport) -> None:
    """The table on stdout, as wide as it needs to be."""
    from retoken.eval.scores import mean_score

    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(_table(report, mean_score(report.scores)), highlight=False)
    for line in _notes(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(report: TasksReport, mean: float | None) -> Table:
    other = report.against
    table = Table(title=None, box=None, pad_edge=False)
    table.add_column("task")
    for name in ("n", "metric", "value", "± s.e."):
        table.add_column(name, justify="left" if name == "metric" else "right")
    if other:
        table.add_column("difference", justify="right")
        table.add_column("95 % interval", justify="right")
    table.add_column("gold bits/byte", justify="right")
    if other:
        table.add_column("difference", justify="right")
        table.add_column("95 % interval", justify="right")
    for score in report.scores:
        table.add_row(*_row(score, report))
    if mean is not None:
        cells = ["mean", "", "", f"{mean:.4f}", ""]
        cells += [*_cells(other.mean), "", *_cells(other.mean_bits)] if other else [""]
        table.add_row(*cells)
    return table


def _row(score: Score, report: TasksReport) -> list[str]:
    other = report.against
    cells = [score.name, f"{score.n:,}", score.metric, f"{score.value:.4f}", _number(score.stderr)]
    if other:
        cells += _cells(other.metric.get(score.name))
    cells.append(_number(score.gold_bits_per_byte))
    if other:
        cells += _cells(other.bits.get(score.name))
    return cells


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _cells(found: Difference | None) -> list[str]:
    return ["", ""] if found is None else [f"{found.mean:+.4f}", f"{found.low:+.4f} to {found.high:+.4f}"]


def _notes(report: TasksReport) -> list[str]:
    from retoken.eval.benchmarks import LEFT_OUT
    from retoken.eval.package_sources import DIFFERS

    limit = report.settings["limit"]
    head = f"{report.checkpoint}, {report.settings['harness']}, {report.settings['dtype']}: {report.out}"
    lines = [head]
    if report.against:
        lines.append(f"difference: to {report.against.name}, on the same documents")
    if limit:
        lines.append(f"a quick look: the first {limit} documents of each task")
    if report.settings["data"] == "packages":
        named = {score.name for score in report.scores}
        lines += [f"{task}: {how}" for task, how in DIFFERS.items() if task in named]
    lines += [
        f"{area}: without {name}, which the harness lacks"
        for area, name in LEFT_OUT.items()
        if area in report.asked
    ]
    lines += [
        f"{score.name}: {score.cut} requests are longer than the context, and lost their beginning"
        for score in report.scores
        if score.cut
    ]
    return lines
