"""Benchmark tasks of a checkpoint: what is asked, measured task by task, and the table of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from retoken.errors import ConfigError
from retoken.eval import harness
from retoken.eval.answers import Answers
from retoken.eval.benchmarks import expand
from retoken.eval.differences import Against, against, check_comparable
from retoken.eval.harness import Harness
from retoken.eval.identity import identity
from retoken.eval.loading import HUB, Loaded
from retoken.eval.results import ResultsFolder
from retoken.eval.scores import Score, scores
from retoken.eval.task_data import PackageTasks, package_tasks
from retoken.train.world import World

TaskData = Literal["hub", "packages"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TasksConfig:
    """What is to be measured."""

    names: tuple[str, ...]
    """Suites and benchmarks by name."""
    data: TaskData = "hub"
    """Where documents come from."""
    limit: int = 0
    """Documents of a task, from the first on; 0: all."""
    batch_size: int = 16
    """Requests of a forward pass."""
    context_length: int = 0
    """Tokens of a request, at most; 0: the model's own."""
    share_contexts: bool = True
    """Compute a question that is asked once for every choice once; False: as the harness does."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the checkpoint was loaded in."""
    run_code: bool = False
    """Run programs that the model writes, where a task asks for it."""
    out: Path
    """The folder of results."""
    against: Path | None = None
    """Another such folder."""


class Told(Protocol):
    """Shows what goes on."""

    def start(self, task: str, number: int, of: int) -> Callable[[int, int], None]:
        """A task begins; returns what is told (answers there, answers wanted)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TasksReport:
    """What was measured, in the order asked."""

    checkpoint: str
    asked: tuple[str, ...]
    out: Path
    settings: dict[str, Any]
    scores: tuple[Score, ...]
    against: Against | None


def default_out(where: str, limit: int) -> Path:
    """The folder of results where none is named: beside the checkpoint; out/eval for one on the hub."""
    tail = f"-tasks-limit-{limit}" if limit else "-tasks"
    if where.startswith(HUB):
        return Path("out") / "eval" / (where.removeprefix(HUB).replace("/", "--") + tail)
    path = Path(where).resolve()
    return path.with_name(path.name + tail)


def evaluate_tasks(
    loaded: Loaded, config: TasksConfig, world: World, told: Told, rows_path: Path | None = None
) -> TasksReport:
    """Measure what is not yet there, and report all of it.

    Args:
        loaded: the checkpoint, with its tokenizer.
        config: what is asked.
        world: where to compute; one process.
        told: shows progress.
        rows_path: the packed file rows are served from, where it lies outside the checkpoint's folder.

    Raises:
        ConfigError: a name, the folder or the other folder does not fit; lm-eval is not installed.
        DataError: a task's documents cannot be had.
        CheckpointError: the checkpoint has no tokenizer, or a result that is there is broken.
    """
    if world.size > 1:
        raise ConfigError(f"--tasks runs in one process; found {world.size}; accepted: without torchrun")
    other = ResultsFolder.open(config.against) if config.against else None
    settings = _settings(loaded, config, rows_path)
    tasks, definitions = _source(config.data)
    names = expand(config.names)
    benchmarks = {name: tasks.expand(name) for name in names}
    wanted = list(dict.fromkeys(task for parts in benchmarks.values() for task in parts))
    if other:
        check_comparable(settings, wanted, other)
    folder = ResultsFolder.claim(config.out, settings, loaded.name)
    with folder.alone():
        missing = [task for task in wanted if not folder.has(task)]
        if missing:
            used = tasks if isinstance(tasks, Harness) else Harness(definitions)
            _measure(missing, used, folder, loaded, config, world, told)
    found = scores(folder, benchmarks)
    compared = against(folder, other, benchmarks, found) if other else None
    return TasksReport(
        checkpoint=loaded.name,
        asked=config.names,
        out=config.out,
        settings=settings,
        scores=found,
        against=compared,
    )


def _settings(loaded: Loaded, config: TasksConfig, rows_path: Path | None) -> dict[str, Any]:
    return {
        "checkpoint": identity(loaded, rows_path),
        "harness": f"lm-eval {harness.version()}",
        "data": config.data,
        "limit": config.limit,
        "dtype": config.dtype,
        "context_length": config.context_length,
    }


def _source(data: TaskData) -> tuple[Harness | PackageTasks, Path | None]:
    if data == "hub":
        return Harness(), None
    tasks = package_tasks()
    return tasks, tasks.definitions(harness.own_definitions(), harness.version())


def _measure(
    tasks: list[str],
    source: Harness,
    folder: ResultsFolder,
    loaded: Loaded,
    config: TasksConfig,
    world: World,
    told: Told,
) -> None:
    from retoken.eval.harness_model import HarnessModel

    loaded.model.to(world.device)  # pyright: ignore
    model = HarnessModel(
        loaded,
        batch_size=config.batch_size,
        context_length=config.context_length,
        share_contexts=config.share_contexts,
    )
    for number, task in enumerate(tasks, 1):
        progress = told.start(task, number, len(tasks))
        with Answers(folder.answers_path(task)) as answers:
            options = {"limit": config.limit, "run_code": config.run_code, "on_progress": progress}
            folder.write(source.run(task, model, answers, **options))
            answers.discard()
