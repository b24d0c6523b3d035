"""What a step of the engine takes with modulators over one without: `engines.csv`.

    python studies/serving/engines.py --text p.jsonl --folder plain=PLAIN --folder 'plain again=PLAIN' \
        --folder 'ReToken, host=RETOKEN={"tables": "host"}' --folder 'MoRT, disk=MORT'

All engines are in this process, read one copy of the backbone's weights, the first engine's, and take turns
step by step: servers side by side differ by where their weights lie, and by what else a machine does.
The first step reads prompts, so its time is that to the first token; the others' is that of a further token.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from vllm import LLM, SamplingParams

from retoken.bench.decode.turns import Ratio

HERE = Path(__file__).parent
KINDS = ("first", "further")


def engine_of(folder: str, placement: list[str]) -> LLM:
    """vLLM's engine in this process."""
    options: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 32, "dtype": "bfloat16"}
    options["enable_prefix_caching"] = False  # prompts come again, and are to be read again
    if placement:
        options["additional_config"] = {"retoken": json.loads(placement[0])}
    return LLM(model=folder, **options)


def packed(module: Any) -> list[Any]:
    """A layer's packed weights: tensors, or the numbers by which oneDNN knows them."""
    cells = getattr(getattr(module, "cpu_linear", None), "__closure__", None) or ()
    found = [getattr(cell.cell_contents, "handler_tensor", cell.cell_contents) for cell in cells]
    return [each for each in found if isinstance(each, torch.Tensor)]


def share(model: Any, other: Any) -> int:
    """Let `other` read the backbone's weights of `model`; how many tensors it does."""
    ours, count = dict(model.named_modules()), 0
    for name, module in other.named_modules():
        if name not in ours:
            continue
        own, theirs = dict(ours[name].named_parameters(recurse=False)), module.named_parameters(recurse=False)
        pairs = [(own[key], each) for key, each in theirs if key in own and each.numel()]
        pairs += zip(packed(ours[name]), packed(module), strict=True)
        for here, there in pairs:
            there.data = here.data
        count += len(pairs)
    return count


def one_copy(engines: dict[str, LLM]) -> None:
    """Have all engines read the first's weights."""
    models = [engine.apply_model(lambda model: model)[0] for engine in engines.values()]
    counts = [share(models[0], other) for other in models[1:]]
    print("tensors that are shared, by engine:", *counts, flush=True)


def steps(engines: dict[str, LLM], prompts: list[str], tokens: int, turn: int) -> Iterator[dict[str, float]]:
    """Seconds of each step, by engine, until all prompts are answered; another goes first each time."""
    params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
    for engine in engines.values():
        for number, prompt in enumerate(prompts):
            engine.llm_engine.add_request(str(number), prompt, params)
    labels, first = list(engines), turn % len(engines)
    while any(engine.llm_engine.has_unfinished_requests() for engine in engines.values()):
        seconds: dict[str, float] = {}
        for label in labels[first:] + labels[:first]:
            start = time.perf_counter()
            engines[label].llm_engine.step()
            seconds[label] = time.perf_counter() - start
        first = (first + 1) % len(labels)
        yield seconds


def measure(engines: dict[str, LLM], prompts: list[str], asked: argparse.Namespace) -> list[dict[str, Any]]:
    """All steps of all turns; the first turn warms up."""
    rows = []
    for at_once in asked.concurrency:
        for turn in range(-1, asked.turns):
            some = [prompts[(max(turn, 0) * at_once + n) % len(prompts)] for n in range(at_once)]
            for number, seconds in enumerate(steps(engines, some, asked.tokens, turn)):
                kind = KINDS[number > 0]
                found = {label: f"{1e3 * took:.3f}" for label, took in seconds.items()}
                if turn >= 0:
                    rows.append({"concurrency": at_once, "turn": turn, "kind": kind} | found)
        print(table([row for row in rows if row["concurrency"] == at_once], list(engines)), flush=True)
    return rows


def table(rows: list[dict[str, Any]], labels: list[str]) -> str:
    """Over the first engine in the same step: medians with their 95 % intervals, as Markdown."""
    lines = ["| at once | step | engine | ms | over the first | steps |", "|---" * 6 + "|"]
    for at_once in dict.fromkeys(row["concurrency"] for row in rows):
        for kind in KINDS:
            here = [row for row in rows if row["concurrency"] == at_once and row["kind"] == kind]
            times = {label: [float(row[label]) for row in here] for label in labels}
            for label, found in times.items():
                ratio = Ratio.of(found, times[labels[0]])
                spread = f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
                ms = f"{statistics.median(found):.2f}"
                lines.append(f"| {at_once} | {kind} | {label} | {ms} | {spread} | {ratio.count} |")
    return "\n".join(lines)


def main() -> None:
    """Start, measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", action="append", required=True, help="label=folder[={placement}]")
    parser.add_argument("--text", type=Path, required=True, help='lines of {"prompt": …}')
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--out", type=Path, default=HERE / "engines.csv")
    asked = parser.parse_args()
    prompts = [json.loads(line)["prompt"] for line in asked.text.read_text().splitlines()]
    engines: dict[str, LLM] = {}
    for spec in asked.folder:
        label, folder, *placement = spec.split("=", 2)
        engines[label] = engine_of(folder, placement)
        print(label, "is up", flush=True)
    one_copy(engines)
    rows = measure(engines, prompts, asked)
    with asked.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    sys.stdout.flush()
    os._exit(0)  # packed weights have one owner too many


if __name__ == "__main__":
    main()
