"""Running a study: what has not finished, in the plan's order, with the one training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retoken.compare.folder import RunKey
from retoken.compare.launch import OnEvent, launch
from retoken.errors import ConfigError, DataError, TrainingError
from retoken.study.cell import Cell
from retoken.study.folder import StudyFolder, data_of
from retoken.study.planfile import Plan
from retoken.study.table import Row
from retoken.train.config import TrainConfig

CHECKPOINT_SECONDS = 180.0
"""Between checkpoints, by the predicted speed: what a killed run loses at most."""
FAILURES = 3
"""After so many failed runs no other is begun: something is wrong with all of them."""

OnRows = Callable[[Plan, Sequence[Row]], Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a study is run; nothing here changes a result."""

    data: Path
    """The token store it was planned for."""
    jobs: int = 1
    """Runs at once."""
    hours: float = 0.0
    """Begin no run after so many hours; 0: run to the end."""
    only: tuple[str, ...] = ()
    """Ids of the runs to make; empty: all."""
    stages: tuple[str, ...] = ()
    """Stages to run; empty: all."""
    keep_models: bool = False
    """Keep finished runs' checkpoints and models."""


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What a call came to."""

    plan: Plan
    rows: list[Row]
    failed: dict[str, str] = field(default_factory=dict)
    """{id: what was wrong}."""

    @property
    def waiting(self) -> list[Cell]:
        """Runs that have not finished, provisional ones included."""
        done = {row.id for row in self.rows}
        return [cell for cell in self.plan.cells if cell.id not in done]


def execute(
    plan: Plan,
    folder: StudyFolder,
    options: RunOptions,
    *,
    on_event: OnEvent = lambda key, event: None,
    on_rows: OnRows = lambda plan, rows: None,
) -> Outcome:
    """Run what has not finished; an interrupted run goes on from its newest checkpoint.

    Finished runs decide where later ones are made: `plan.json` in the folder is rewritten as they do.

    Args:
        on_event: Called with every event of every run, see `retoken.compare.launch`.
        on_rows: Called after `runs.csv` was written, each time.

    Raises:
        ConfigError: `only` or `stages` names what the plan has not.
        DataError: The store is not the one that was planned for.
        TrainingError: Another process runs this study.
        KeyboardInterrupt: SIGINT or SIGTERM came; running runs wrote a checkpoint first.
    """
    _check(plan, options)
    with folder.held():
        return _Execution(plan, folder, options, on_event, on_rows).go()


class _Execution:
    def __init__(
        self, plan: Plan, folder: StudyFolder, options: RunOptions, on_event: OnEvent, on_rows: OnRows
    ) -> None:
        self.folder, self.options, self.on_event, self.on_rows = folder, options, on_event, on_rows
        self.outcome = Outcome(plan=plan, rows=[])
        self.last = time.monotonic() + options.hours * 3600 if options.hours else float("inf")

    def go(self) -> Outcome:
        self.account(advance=True)
        while jobs := self.pending():
            self.folder.await_orphans(jobs)
            before = len(self.outcome.rows)
            cells = {cell.key: cell for cell in jobs}
            launch(
                {cell.key: self.config(cell) for cell in jobs},
                at_once=self.options.jobs,
                on_event=self.on_event,
                on_done=lambda key, cells=cells: self.done(cells[key]),
                on_failed=self.failed,
                may_start=self.may_start,
                samples=False,
            )
            self.account(advance=True)
            if not self.may_start() or len(self.outcome.rows) == before:
                break
        return self.outcome

    def pending(self) -> list[Cell]:
        """What to run next: dense runs before those of mixtures, which may wait for what these decide."""
        skip = {*(row.id for row in self.outcome.rows), *self.outcome.failed}
        chosen = [cell for cell in self.outcome.plan.cells if cell.id not in skip and not cell.provisional]
        if self.options.only:
            chosen = [cell for cell in chosen if cell.id in self.options.only]
        if self.options.stages:
            chosen = [cell for cell in chosen if cell.stage in self.options.stages]
        ordered = self.outcome.plan.order(chosen)
        return [cell for cell in ordered if cell.backbone == ordered[0].backbone]

    def config(self, cell: Cell) -> TrainConfig:
        plan = self.outcome.plan
        step = plan.cost.token_seconds(cell) * plan.study.tokens_per_step
        return cell.train_config(
            plan.study,
            data=self.options.data,
            out=self.folder.run(cell),
            threads=plan.study.threads,
            checkpoint_every=max(1, round(CHECKPOINT_SECONDS / step)),
            keep=1,
        )

    def may_start(self) -> bool:
        return time.monotonic() < self.last and len(self.outcome.failed) < FAILURES

    def failed(self, key: RunKey, error: Exception) -> None:
        self.outcome.failed[key.label] = " ".join(str(error).split())
        self.on_event(key, {"kind": "failed", "message": str(error)})

    def done(self, cell: Cell) -> None:
        self.account()
        if not self.options.keep_models:
            self.folder.lighten(cell)

    def account(self, *, advance: bool = False) -> None:
        """Write what has finished; with `advance`, also what follows from it for the plan."""
        plan, rows = self.outcome.plan, self.folder.rows(self.outcome.plan.cells)
        if advance:
            plan, _ = plan.advanced(rows)
        if plan != self.outcome.plan or not self.folder.plan.exists():
            plan.write(self.folder.plan)
        self.outcome.plan, self.outcome.rows = plan, rows
        if rows:
            self.folder.write_rows(rows, plan.cells)
        self.on_rows(plan, rows)


def _check(plan: Plan, options: RunOptions) -> None:
    found = data_of(options.data)
    if found != plan.data:
        raise DataError(
            f"{options.data} holds {found.train_tokens} tokens of a vocabulary of {found.vocab_size} "
            f"(fingerprint {found.fingerprint[:12]}); the plan is for {plan.data.train_tokens} of "
            f"{plan.data.vocab_size} ({plan.data.fingerprint[:12]}); accepted: that store"
        )
    if options.jobs < 1 or options.hours < 0:
        raise ConfigError(f"jobs is {options.jobs}, hours {options.hours}; accepted: from 1, and from 0")
    known = {cell.id: cell for cell in plan.cells}
    for name in options.only:
        if name not in known:
            raise ConfigError(f"only has {name!r}, which the plan has not; `plan --list` prints the ids")
        if known[name].provisional:
            raise ConfigError(
                f"only has {name!r}, which waits for its budget's best size; accepted: runs that do not"
            )
    stages = {cell.stage for cell in plan.cells}
    for stage in options.stages:
        if stage not in stages:
            raise ConfigError(f"stages has {stage!r}; accepted: {', '.join(sorted(stages))}")


def outcome_error(outcome: Outcome) -> TrainingError | None:
    """What a caller is told where runs failed."""
    if not outcome.failed:
        return None
    name, message = next(iter(outcome.failed.items()))
    return TrainingError(f"{len(outcome.failed)} run(s) failed, first {name}: {message}")
