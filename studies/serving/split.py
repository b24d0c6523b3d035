"""Where the engine's time goes: rows looked up, gates and mixtures, everything else: `split.csv`.

    python studies/serving/split.py --text p.jsonl --folder label=FOLDER[={placement}] ... [--eager]

The engine runs in this process, and the plugin's parts are timed within its passes; what a compiled graph
does with rows is no part of its own. A step is one pass of the model over all requests under way; the first
ones, which read prompts, are left out.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

HERE = Path(__file__).parent


class Clock:
    """Seconds spent in parts of the plugin since it was last set back."""

    def __init__(self) -> None:
        self.now = {"lookup": 0.0, "gate": 0.0}

    def around(self, owner: Any, name: str, part: str) -> None:
        """Time a function of `owner`."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self.now[part] += time.perf_counter() - start

        setattr(owner, name, timed)


PARTS = ("step", "lookup", "gate")


@contextmanager
def timed_plugin() -> Iterator[Clock]:
    """Within, the plugin's parts are timed."""
    from retoken.engines.vllm import models
    from retoken.engines.vllm.in_graph import InGraphPasses
    from retoken.engines.vllm.passes import Pass

    parts = [
        (models, "begin", "lookup"),
        (InGraphPasses, "begin", "lookup"),
        (InGraphPasses, "finish", "lookup"),
    ]
    parts += [(Pass, name, "gate") for name in ("gate", "route", "add")]
    clock, kept = Clock(), [(owner, name, getattr(owner, name)) for owner, name, _ in parts]
    for part in parts:
        clock.around(*part)
    try:
        yield clock
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)


@contextmanager
def engine_of(folder: str, placement: list[str], eager: bool) -> Iterator[Any]:
    """vLLM's engine in this process."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    options: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 32, "dtype": "bfloat16"}
    if placement:
        options["additional_config"] = {"retoken": json.loads(placement[0])}
    llm = LLM(model=folder, enforce_eager=eager, **options)
    try:
        yield llm.llm_engine
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()
        cleanup_dist_env_and_memory()


def steps_of(engine: Any, clock: Clock, prompts: list[str], tokens: int) -> list[dict[str, float]]:
    """The parts of each step until all prompts have been answered."""
    from vllm import SamplingParams

    for number, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)
        engine.add_request(str(number), prompt, params)
    steps = []
    while engine.has_unfinished_requests():
        clock.now = dict.fromkeys(clock.now, 0.0)
        start = time.perf_counter()
        engine.step()
        steps.append({"step": time.perf_counter() - start, **clock.now})
    return steps


def measure(spec: str, asked: argparse.Namespace, prompts: list[str]) -> Iterator[dict[str, object]]:
    """One engine, asked by one, several, many at once; medians over the steps that generate."""
    label, folder, *placement = spec.split("=", 2)
    with timed_plugin() as clock, engine_of(folder, placement, asked.eager) as engine:
        for at_once in asked.concurrency:
            steps = steps_of(engine, clock, prompts[:at_once], asked.tokens)
            steps = steps[len(steps) // 4 : -1]
            found = {
                f"{part}_ms": round(1e3 * statistics.median(s[part] for s in steps), 4) for part in PARTS
            }
            named = {"label": label, "concurrency": at_once, "eager": asked.eager, "steps": len(steps)}
            yield named | found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", action="append", required=True, help="label=folder[={placement}]")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "split.csv")
    asked = parser.parse_args()
    prompts = [json.loads(line)["prompt"] for line in asked.text.read_text().splitlines()]
    rows = []
    for spec in asked.folder:
        for row in measure(spec, asked, prompts):
            print(row, flush=True)
            rows.append(row)
    with asked.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
