"""`retoken scaling run`: a planned study, run by run, until all is done or time is up."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from retoken.cli.options import as_json
from retoken.errors import ConfigError
from retoken.study.folder import StudyFolder
from retoken.study.planfile import Plan, merged


@dataclass(frozen=True, kw_only=True)
class ScalingRun:
    """Run a planned study with the main training loop, and write runs.csv after every run.

    Finished runs are not run again and interrupted ones go on from their newest checkpoint, so the same
    command can be given until all is done.
    """

    data: Path
    """The token store the study was planned for."""
    out: Path = Path("out/scaling")
    """Folder of the study."""
    plan: Path | None = None
    """The plan; without it plan.json of the folder."""
    jobs: int = 0
    """Runs at once; 0: the machine's cores over the threads of a run."""
    hours: float = 0.0
    """Begin no run after so many hours; 0: go on to the end."""
    only: tuple[str, ...] = ()
    """Ids of the runs to make; `retoken scaling plan --list` prints them."""
    stages: tuple[str, ...] = ()
    """Stages to run: baseline, optimum, frontier, ratio, sparsity, stored, time."""
    keep_models: bool = False
    """Keep the checkpoints and models of finished runs; tables are large."""
    json: bool = False
    """Print what has finished as one JSON object."""

    def run(self) -> int:
        """Run, print; returns the exit code."""
        from retoken.cli.scaling_study_view import StudyView, print_outcome
        from retoken.study.execute import RunOptions, execute, outcome_error

        folder = StudyFolder(self.out)
        plan = self._plan(folder)
        options = RunOptions(
            data=self.data,
            jobs=self._jobs(plan),
            hours=self.hours,
            only=self.only,
            stages=self.stages,
            keep_models=self.keep_models,
        )
        with StudyView(options.jobs) as view:
            outcome = execute(plan, folder, options, on_event=view.event, on_rows=view.rows)
        if self.json:
            waiting = [cell.id for cell in outcome.waiting]
            rows = [asdict(row) for row in outcome.rows]
            print(as_json({"runs": rows, "waiting": waiting, "failed": outcome.failed}))
        else:
            print_outcome(outcome, folder.table, only=self.only, jobs=options.jobs)
        if error := outcome_error(outcome):
            raise error
        return 0

    def _jobs(self, plan: Plan) -> int:
        from retoken.compare.machine import cores

        return self.jobs or max(1, cores() // plan.study.threads)

    def _plan(self, folder: StudyFolder) -> Plan:
        """The folder's plan, or another place's, to be run in this folder.

        Raises:
            ConfigError: There is none, or the folder holds another study's.
        """
        if folder.plan.exists():
            own = Plan.read(folder.plan)
            if self.plan is not None:
                other = Plan.read(self.plan)
                own.refuse_other(folder.plan, other.study, other.data)
                return replace(own, cells=merged(own.cells, other.cells))
            return own
        if self.plan is None:
            raise ConfigError(
                f"{folder.plan} does not exist; accepted: the --out of `retoken scaling plan`, or a --plan"
            )
        if not self.plan.exists():
            raise ConfigError(f"plan {self.plan} does not exist; accepted: a plan.json")
        return Plan.read(self.plan)
