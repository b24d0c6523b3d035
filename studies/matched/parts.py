"""What the recipe's two tables each do: held-out loss with rows at zero.

    python studies/matched/parts.py --stores STORES --work WORK

After `run.py train`, on whatever trained models of it WORK has. Rows are those of tokens, or of hashed
bigrams by how often the training split reads them. Writes parts.csv and prints the table of README.md.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from run import RUNS, SEEDS, SIZES, Trial, ledger_of
from torch import Tensor

import retoken
from retoken.checkpoint.files import atomic_file
from retoken.data.tokens import TokenStore, eval_windows
from retoken.eval import open_checkpoint
from retoken.inspect import Subject
from retoken.inspect.neutral import without_rows
from retoken.inspect.tables import RANKS
from retoken.plan.measured import of_lookups

PARTS = Path(__file__).parent / "parts.csv"
VARIANT, SIZE, TOKENS, CONTEXT = "additive_both", 5, 65_536, 128


def subject_of(folder: Path, store: TokenStore) -> Subject:
    """A trained model with held-out windows to measure on."""
    model = open_checkpoint(str(folder)).model
    windows = torch.cat(list(eval_windows(store.split("val"), CONTEXT + 1, TOKENS, batch_size=256)))
    return Subject(
        model=model,
        modulators=retoken.modulators(model),
        dtype=torch.float32,
        looked_NW=windows[:0],
        measured_MW=windows,
        count_V=torch.empty(0),
    )


def parts_of(subject: Subject, store: TokenStore) -> Iterator[tuple[str, Tensor]]:
    """Names of sets of rows, and their numbers."""
    vocab = store.manifest.vocab_size
    index, rows = subject.model.retoken.index, next(iter(subject.modulators.values())).table.vocab_size
    yield "tokens", torch.arange(vocab)
    yield "bigrams", torch.arange(vocab, rows)
    yield "all", torch.arange(rows)
    read = torch.from_numpy(of_lookups(store, index, rows, CONTEXT).probability)[vocab:]
    order = read.argsort(descending=True, stable=True) + vocab
    for first, last in RANKS:
        if first <= len(order):
            yield f"bigrams {first:,}-{min(last, len(order)):,}", order[first - 1 : last]


def measure(preset: str, seed: int, folder: Path, store: TokenStore) -> Iterator[dict[str, object]]:
    """The lines of one model."""
    subject = subject_of(folder, store)
    before = subject.loss()
    for name, ids in parts_of(subject, store):
        with without_rows(subject.modulators.values(), ids):
            found = {"rows": len(ids), "loss": before, "without": subject.loss() - before}
        print(preset, seed, name, f"{found['without']:+.4f}", flush=True)
        yield {"preset": preset, "seed": seed, "part": name, **found}


def table(lines: list[dict[str, object]]) -> str:
    """Mean over seeds, with their range."""
    by_part: dict[tuple[object, object], list[dict[str, object]]] = defaultdict(list)
    for line in lines:
        by_part[line["preset"], line["part"]].append(line)
    text = ["| backbone | rows at zero | of them | loss, by seed |", "|---|---|---|---|"]
    for (preset, part), found in by_part.items():
        changes = ", ".join(f"{float(str(line['without'])):+.3f}" for line in found)
        text.append(f"| {preset} | {part} | {int(str(found[0]['rows'])):,} | {changes} |")
    return "\n".join(text)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stores", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    given = parser.parse_args()
    rates = {row["preset"]: float(row["rate"]) for row in ledger_of(RUNS).rows if row["variant"] == VARIANT}
    lines: list[dict[str, object]] = []
    for preset, name in SIZES.items():
        store = TokenStore.open(given.stores / name)
        for seed in SEEDS:
            trial = Trial(preset=preset, size=SIZE, variant=VARIANT, rate=rates[preset], seed=seed)
            folder = given.work / trial.name / "model"
            if folder.is_dir():
                lines += measure(preset, seed, folder, store)
    with atomic_file(PARTS) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    print(table(lines))


if __name__ == "__main__":
    main()
