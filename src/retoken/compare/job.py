"""The main job: every run of a comparison that has not finished, and the account of those that have."""

from collections.abc import Callable, Sequence
from typing import Any

from retoken.compare import plan
from retoken.compare.config import CompareConfig
from retoken.compare.folder import CompareFolder, Comparison, RunKey
from retoken.compare.launch import OnEvent, launch
from retoken.compare.machine import environment
from retoken.compare.runs import SAMPLES_FILE, is_finished, read_run
from retoken.data.tokens import TokenStore

OnResults = Callable[[Comparison], Any]


def compare(
    config: CompareConfig,
    *,
    command: Callable[[Sequence[RunKey]], str],
    on_event: OnEvent = lambda key, event: None,
    on_results: OnResults = lambda comparison: None,
) -> Comparison:
    """Train every variant on every seed, and write what came of it after each run.

    Finished runs are not run again and interrupted ones go on from their newest checkpoint, so the same call
    repeats nothing.

    Args:
        config: The comparison.
        command: How to repeat it, given all runs the folder was ever asked for; goes into the report.
        on_event: Called with every event of every run, see ``compare.launch``.
        on_results: Called after ``results.json`` was written, each time; draws the report.

    Raises:
        ConfigError, DataError, AttachError: Something does not fit; nothing was trained.
        CheckpointError: A run's folder is broken; it is named.
        KeyboardInterrupt: SIGINT or SIGTERM came; running runs wrote a checkpoint first.
    """
    store = TokenStore.open(config.data)
    jobs, folder = plan.plan(config), CompareFolder(config.out)
    about = {
        "command": command(list(dict.fromkeys([*folder.planned(), *jobs]))),
        "environment": {**environment(), "jobs": config.jobs},
        "counts": plan.counts(config, store),
    }
    folder.claim(plan.recipe(config, store), list(jobs), **about)
    pending = {key: job for key, job in jobs.items() if not _complete(folder, key)}

    def account(key: RunKey | None = None) -> Comparison:
        comparison = folder.load()
        folder.write_results(comparison)
        on_results(comparison)
        return comparison

    comparison = account()
    if not pending:
        return comparison
    launch(pending, at_once=config.jobs, on_event=on_event, on_done=account)
    return folder.load()


def _complete(folder: CompareFolder, key: RunKey) -> bool:
    """Whether a run has nothing left to do.

    Raises:
        CheckpointError: It is marked finished, but a file of it is broken: running on would hide that.
    """
    path = folder.run(key)
    if not is_finished(path):
        return False
    read_run(path, name=key.name, seed=key.seed)
    return (path / SAMPLES_FILE).exists()
