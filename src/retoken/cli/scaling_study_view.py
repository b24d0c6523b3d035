"""What `retoken scaling plan` and `run` show: the grid and its cost, and runs as they go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from retoken.cli.compare_view import View
from retoken.cli.presets import size
from retoken.compare.folder import RunKey
from retoken.study.cell import STAGES, Cell
from retoken.study.execute import Outcome
from retoken.study.grid import Grid
from retoken.study.planfile import Plan
from retoken.study.table import Row


class StudyView(View):
    """As `View`, but a run's line goes when the run does, and a line says how far the study is."""

    def __init__(self, jobs: int) -> None:
        super().__init__()
        self._jobs, self._loss = jobs, dict[str, float]()
        self._far = ""

    def event(self, key: RunKey, event: dict[str, Any]) -> None:
        """Show one event of a run."""
        if event["kind"] == "end":
            self._loss[key.label] = event["val_loss"]
        if event["kind"] not in ("done", "failed"):
            super().event(key, event)
            return
        if self._progress is not None and key in self._tasks:
            self._progress.remove_task(self._tasks.pop(key))
        loss = self._loss.get(key.label, float("nan"))
        said = f"loss {loss:.4f}" if event["kind"] == "done" else f"failed: {event.get('message', '')}"
        self._console.print(f"{key.label}  {said}", highlight=False, soft_wrap=True)

    def rows(self, plan: Plan, rows: Sequence[Row]) -> None:
        """Say how many runs are done and how long the rest should take."""
        done = {row.id for row in rows}
        left = [cell for cell in plan.cells if cell.id not in done]
        hours = plan.hours(left, self._jobs)
        said = f"{len(done)} of {len(done) + len(left)} runs, about {hours:.2f} h left"
        if said != self._far:
            self._far = said
            self._console.print(said, highlight=False)

    def label(self, key: RunKey) -> str:
        """The whole id."""
        return key.label


def console() -> Console:
    """Wide where nobody watches."""
    found = Console()
    return found if found.is_terminal else Console(width=150)


def print_plan(plan: Plan, grid: Grid, done: set[str], *, jobs: int, path: Path, every: bool) -> None:
    """The grid, the variants, the cost by stage, and what to do next."""
    out = console()
    out.print(_grid_table(plan, grid))
    if grid.best:
        out.print(_best_table(grid))
    out.print(_variant_table(plan))
    if every:
        out.print(_run_table(plan, done))
    out.print(_stage_table(plan, done, jobs))
    for note in grid.notes:
        out.print(f"note: {note}", highlight=False)
    cost = plan.cost
    out.print(
        f"speeds: {cost.origin}, {cost.points} measured with {cost.jobs} at once, fitted within "
        f"{cost.worst:.0%}; start of a run {cost.start_seconds:.0f} s",
        highlight=False,
    )
    guessed = sum(cell.provisional for cell in plan.cells)
    if guessed:
        out.print(f"{guessed} runs wait for the best sizes; their cost is that of each budget's middle size")
    out.print(f"plan: {path}", highlight=False, soft_wrap=True)


def _table(title: str, columns: Iterable[str], left: int = 1) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < left else "right", no_wrap=True)
    return table


def _grid_table(plan: Plan, grid: Grid) -> Table:
    table = _table(
        "the baseline's grid",
        ("backbone", "budget", "shape", "N_c", "of wanted", "D", "D/N_c", "epochs", "steps", "lr",
         "counted/C", "minutes"),
        3,
    )  # fmt: skip
    own = [cell for cell in plan.cells if cell.stage == "baseline" and cell.seed == plan.study.seeds[0]]
    for cell in sorted(own, key=lambda c: (c.backbone, c.budget, c.compute_params)):
        wanted = grid.wanted.get(cell.name)
        table.add_row(
            cell.backbone, f"{cell.budget:.2e}", cell.preset, size(cell.compute_params),
            f"{cell.compute_params / wanted - 1:+.1%}" if wanted else "-", size(cell.tokens),
            f"{cell.tokens / cell.compute_params:.1f}", f"{cell.tokens / plan.data.train_tokens:.2f}",
            str(cell.steps), f"{cell.lr:g}", f"{cell.flops_counted / cell.budget:.2f}",
            f"{plan.seconds(cell) / 60:.1f}",
        )  # fmt: skip
    return table


def _best_table(grid: Grid) -> Table:
    table = _table(
        "best sizes", ("backbone", "budget", "N_c at the vertex", "nearest", "lowest loss", "where"), 2
    )
    for best in grid.best:
        table.add_row(
            best.backbone, f"{best.budget:.2e}", size(best.compute_params), best.nearest,
            f"{best.loss:.4f}", best.found,
        )  # fmt: skip
    return table


def _variant_table(plan: Plan) -> Table:
    table = _table(
        "variants and controls",
        ("run, without its seed", "stage", "n_e", "K", "eta", "rho", "N_c", "tables", "stored", "D", "epochs",
         "seeds", "minutes each"),
        2,
    )  # fmt: skip
    named: dict[str, list[Cell]] = {}
    for cell in plan.order(plan.cells):
        if cell.stage != "baseline":
            named.setdefault(cell.name, []).append(cell)
    for name, cells in named.items():
        cell = cells[0]
        table.add_row(
            name + (" ?" if cell.provisional else ""), cell.stage, str(cell.num_modulators), str(cell.top_k),
            f"{cell.eta:.1f}", f"{cell.rho:.3f}", size(cell.compute_params), size(cell.table_params),
            size(cell.stored_params), size(cell.tokens), f"{cell.tokens / plan.data.train_tokens:.2f}",
            " ".join(str(each.seed) for each in cells), f"{plan.seconds(cell) / 60:.1f}",
        )  # fmt: skip
    return table


def _run_table(plan: Plan, done: set[str]) -> Table:
    table = _table("runs, in their order", ("id", "stage", "state", "minutes"), 3)
    for cell in plan.order(plan.cells):
        state = "done" if cell.id in done else "waits for the best size" if cell.provisional else "to run"
        table.add_row(cell.id, cell.stage, state, f"{plan.seconds(cell) / 60:.1f}")
    return table


def _stage_table(plan: Plan, done: set[str], jobs: int) -> Table:
    table = _table(
        f"cost, {jobs} at once with {plan.study.threads} thread(s) each",
        ("backbone", "stage", "runs", "done", "hours", "hours left"),
        2,
    )
    for backbone in ("dense", "mixture"):
        for stage in STAGES:
            cells = [c for c in plan.cells if (c.backbone, c.stage) == (backbone, stage)]
            if cells:
                table.add_row(backbone, stage, *_cost(plan, cells, done, jobs))
    table.add_row("all", "", *_cost(plan, plan.cells, done, jobs), style="bold")
    return table


def _cost(plan: Plan, cells: Sequence[Cell], done: set[str], jobs: int) -> tuple[str, ...]:
    left = [cell for cell in cells if cell.id not in done]
    hours = f"{plan.hours(cells, jobs):.2f}", f"{plan.hours(left, jobs):.2f}"
    return str(len(cells)), str(len(cells) - len(left)), *hours


def print_outcome(outcome: Outcome, table: Path, *, only: tuple[str, ...], jobs: int) -> None:
    """Which runs there are now, and what is left."""
    out = console()
    for row in outcome.rows:
        if row.id in only:
            out.print(f"{row.id}  loss {row.loss!r}", highlight=False, soft_wrap=True)
    for name, message in outcome.failed.items():
        out.print(f"failed: {name}: {message}", highlight=False, soft_wrap=True)
    left = outcome.waiting
    guessed = sum(cell.provisional for cell in left)
    waits = f", {guessed} of them for best sizes" if guessed else ""
    hours = outcome.plan.hours(left, jobs)
    out.print(f"{len(outcome.rows)} runs done, {len(left)} left{waits}: about {hours:.2f} h", highlight=False)
    out.print(f"table: {table}", highlight=False, soft_wrap=True)
