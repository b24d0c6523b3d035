"""The harness without us: a plain model's tasks by lm-eval alone, beside what `retoken eval` said of it.

    retoken eval MODEL --tasks paper --task-data packages --no-share-contexts --out RESULTS
    python studies/retrofit/alone.py MODEL RESULTS --table alone.csv

Only the definitions of tasks, which say where documents lie, are this package's. Type and batch size have to
be those of RESULTS. Prints, and writes, for each task: both values of each metric, and the largest difference
of a log-likelihood. What the table has of other tasks stays.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from retoken.eval import harness
from retoken.eval.benchmarks import EIGHT
from retoken.eval.results import ResultsFolder, TaskResult
from retoken.eval.task_data import package_tasks

COLUMNS = ("task", "documents", "metric", "alone", "ours", "documents_that_differ", "largest_difference_nats")


def compare(task: str, report: dict[str, Any], ours: TaskResult) -> list[dict[str, Any]]:
    """A row a metric."""
    samples = sorted(report["samples"][task], key=lambda sample: sample["doc_id"])
    pairs = list(zip(samples, ours.items, strict=True))
    assert all(sample["doc_hash"] == item.hash for sample, item in pairs), "other documents"
    apart = [
        abs(float(answer[0]) - likelihood)
        for sample, item in pairs
        for answer, likelihood in zip(sample["filtered_resps"], item.log_likelihoods, strict=True)
    ]
    return [
        {
            "task": task,
            "documents": len(pairs),
            "metric": name,
            "alone": report["results"][task][f"{name},none"],
            "ours": metric.value,
            "documents_that_differ": sum(sample[name] != item.values[name] for sample, item in pairs),
            "largest_difference_nats": f"{max(apart):.3g}",
        }
        for name, metric in ours.metrics.items()
    ]


def rows_of_others(table: Path, tasks: list[str]) -> list[dict[str, Any]]:
    """What a table, if there is one, has of other tasks."""
    if not table.exists():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["task"] not in tasks]


def main() -> None:
    """Run the eight, compare, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("results", type=Path)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--tasks", nargs="*", default=list(EIGHT))
    args = parser.parse_args()
    options = {"device": args.device, "dtype": args.dtype, "batch_size": args.batch_size}
    model = HFLM(args.model, softmax_dtype="float32", **options)  # its own is of the weights' type
    definitions = package_tasks().definitions(harness.own_definitions(), harness.version())
    manager = TaskManager(include_path=definitions, include_defaults=False)
    folder = ResultsFolder.open(args.results)
    kept, rows = rows_of_others(args.table, args.tasks), []
    for task in args.tasks:
        report = simple_evaluate(model=model, tasks=[task], task_manager=manager, limit=args.limit or None)
        rows += compare(task, report, folder.read(task))  # pyright: ignore
        for row in rows[len(rows) - len(folder.read(task).metrics) :]:
            print(*row.values(), flush=True)
        with args.table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept + rows)


if __name__ == "__main__":
    main()
