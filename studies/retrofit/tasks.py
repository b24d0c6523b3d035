"""Benchmarks before and after: paired differences of results folders, into tasks.csv.

    retoken eval MODEL --tasks paper --task-data packages --out RESULTS/before
    retoken eval WORK/NAME/model --tasks paper --task-data packages --out RESULTS/NAME      # for each way
    python studies/retrofit/tasks.py RESULTS

Tasks that a folder does not have whole are left out of its rows. Intervals are of 95 %, by a paired bootstrap
over documents.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

from run import BEFORE, HERE

from retoken.eval.benchmarks import EIGHT
from retoken.eval.differences import Difference, against
from retoken.eval.results import ResultsFolder
from retoken.eval.scores import scores

TABLE = HERE / "tasks.csv"
COLUMNS = ("way", "task", "documents", "metric", "value", "stderr", "before", "to_before", "low", "high")
COLUMNS += ("bits_to_before", "bits_low", "bits_high")


def numbers(difference: Difference) -> list[str]:
    """A difference and its interval."""
    return [f"{value:.4f}" for value in (difference.mean, difference.low, difference.high)]


def rows(folder: ResultsFolder, before: ResultsFolder) -> Iterator[list[str]]:
    """A row a task that both have."""
    benchmarks = {task: (task,) for task in EIGHT if folder.has(task) and before.has(task)}
    found, untouched = scores(folder, benchmarks), scores(before, benchmarks)
    compared = against(folder, before, benchmarks, found)
    for ours, theirs in zip(found, untouched, strict=True):
        values = (f"{ours.value:.4f}", f"{ours.stderr:.4f}", f"{theirs.value:.4f}")
        differences = numbers(compared.metric[ours.name]) + numbers(compared.bits[ours.name])
        yield [folder.path.name, ours.name, str(ours.n), ours.metric, *values, *differences]


def table(found: list[list[str]], metric: bool, mean: str, low: str, high: str) -> str:
    """A line a task, a column a way: a difference to before, with its interval."""
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in found]
    ways, tasks = (list(dict.fromkeys(row[name] for row in rows)) for name in ("way", "task"))
    cells = {(row["task"], row["way"]): f"{row[mean]} ({row[low]} to {row[high]})" for row in rows}
    first = {row["task"]: row for row in rows}
    heads = ["task", "n", *(["metric", "before"] if metric else []), *ways]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for task in tasks:
        about = [task, first[task]["documents"]]
        about += [first[task]["metric"], first[task]["before"]] if metric else []
        lines.append("| " + " | ".join([*about, *(cells.get((task, way), "") for way in ways)]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write tasks.csv, and print it as two tables: of accuracy, and of bits a byte of the right answers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    args = parser.parse_args()
    before = ResultsFolder.open(args.results / BEFORE)
    others = [path for path in sorted(args.results.iterdir()) if path.is_dir() and path.name != BEFORE]
    found = [row for path in others for row in rows(ResultsFolder.open(path), before)]
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *found])
    print(table(found, True, "to_before", "low", "high"), end="\n\n")
    print(table(found, False, "bits_to_before", "bits_low", "bits_high"))


if __name__ == "__main__":
    main()
