"""The tables of README.md from the turns: `python studies/inference/decode_table.py decode_*.csv`.

    python studies/inference/decode_table.py --merge OUT.csv RUN.csv ...

`--merge` puts the turns of several processes into one file, each with its process's name. A case's ratios are
pooled over its processes then, and the medians of each are printed beside.
"""

from __future__ import annotations

import argparse
import csv
import statistics
from dataclasses import asdict, fields
from pathlib import Path

from retoken.bench.decode.cases import BASELINE
from retoken.bench.decode.turns import Ratio, Reading, summarize

Case = tuple[int, int, str, str]
"""Batch, prompt, variant, rows."""


def read(path: Path) -> dict[str, list[Reading]]:
    """{process: its runs} of a CSV that `retoken bench decode --csv` wrote, or of a merged one."""
    found: dict[str, list[Reading]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            reading = Reading(
                variant=row["variant"],
                placement=row["placement"],
                batch=int(row["batch"]),
                prompt=int(row["prompt"]),
                repeat=int(row["repeat"]),
                ttft=float(row["ttft"]),
                tpot=float(row["tpot"]),
                load=float(row["load"]),
            )
            found.setdefault(row.get("process", ""), []).append(reading)
    return found


def merge(out: Path, files: list[Path]) -> None:
    """The turns of several processes in one file."""
    with out.open("w", newline="", encoding="utf-8") as file:
        names = ["process", *(field.name for field in fields(Reading))]
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for path in files:
            for readings in read(path).values():
                writer.writerows({"process": path.stem, **asdict(reading)} for reading in readings)


def ratio(of: Ratio) -> str:
    """Median and its interval."""
    return f"{of.median:.3f} ({of.low:.3f} to {of.high:.3f})"


def print_process(readings: list[Reading]) -> None:
    """A line a case of one process."""
    print("| batch | prompt | variant | rows | TPOT over plain | TTFT over plain | TPOT, ms | TTFT, ms |")
    print("|---|---|---|---|---|---|---|---|")
    for s in summarize(readings):
        tpot, ttft = ("", "") if s.variant == BASELINE else (ratio(s.tpot), ratio(s.ttft))
        print(
            f"| {s.batch} | {s.prompt} | {s.variant} | {s.placement} | {tpot} | {ttft} "
            f"| {s.tpot_ms:.1f} ± {s.tpot_std_ms:.1f} | {s.ttft_ms:.0f} |"
        )


def pairs_of(readings: list[Reading]) -> dict[Case, list[tuple[Reading, Reading]]]:
    """{case: each turn's run and the plain backbone's of that turn}."""
    plain = {(r.batch, r.prompt, r.repeat): r for r in readings if r.variant == BASELINE}
    found: dict[Case, list[tuple[Reading, Reading]]] = {}
    for r in readings:
        if r.variant != BASELINE:
            pair = (r, plain[r.batch, r.prompt, r.repeat])
            found.setdefault((r.batch, r.prompt, r.variant, r.placement), []).append(pair)
    return found


def print_pooled(processes: dict[str, list[Reading]]) -> None:
    """A line a case over all its processes."""
    cases: dict[Case, list[list[tuple[Reading, Reading]]]] = {}
    for readings in processes.values():
        for case, pairs in pairs_of(readings).items():
            cases.setdefault(case, []).append(pairs)
    print(
        "| batch | prompt | variant | rows | turns | TPOT over plain | each process | TTFT over plain", end=""
    )
    print(" | each process | TPOT, ms | TTFT, ms |\n|---|---|---|---|---|---|---|---|---|---|---|")
    for case, runs in cases.items():
        pairs = [pair for run in runs for pair in run]
        cells: list[object] = [*case, len(pairs)]
        for what in ("tpot", "ttft"):
            cells.append(ratio(_over_plain(pairs, what)))
            cells.append(", ".join(f"{_over_plain(run, what).median:.3f}" for run in runs))
        cells += [f"{1e3 * statistics.median(r.tpot for r, _ in pairs):.1f}"]
        cells += [f"{1e3 * statistics.median(r.ttft for r, _ in pairs):.0f}"]
        print("|", " | ".join(map(str, cells)), "|")


def _over_plain(pairs: list[tuple[Reading, Reading]], what: str) -> Ratio:
    return Ratio.of([getattr(ours, what) for ours, _ in pairs], [getattr(plain, what) for _, plain in pairs])


def main() -> None:
    """Print a table a file, or merge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--merge", type=Path, metavar="OUT")
    asked = parser.parse_args()
    if asked.merge is not None:
        return merge(asked.merge, asked.files)
    for path in asked.files:
        processes = read(path)
        loads = sorted(reading.load for readings in processes.values() for reading in readings)
        print(f"\n{path.name}: load {loads[0]} to {loads[-1]}\n")
        if "" in processes:
            print_process(processes[""])
        else:
            print_pooled(processes)


if __name__ == "__main__":
    main()
