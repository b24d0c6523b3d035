"""Measured speeds of a study's runs: the real training step, a few times, as many at once as will run.

``python -m retoken.study.calibrate`` takes ``{"runs": [TrainConfig.to_dict()]}`` on stdin and prints one JSON
object; what libraries print goes to stderr. Other processes on the machine do not count: where they hold the
cores, the CPU seconds of a step are fewer than those of the clock, and the fewer are taken.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retoken.errors import TrainingError
from retoken.study.cell import Cell
from retoken.study.config import StudyConfig
from retoken.study.cost import Cost, Point, features_of, fit_cost

WARM_UP, TURNS, TURN_SECONDS = 2, 3, 0.25
"""Steps before the clock runs, turns that are timed (the median counts), and how long one lasts at least."""


def calibrate(cells: Sequence[Cell], study: StudyConfig, *, data: Path, jobs: int) -> Cost:
    """Measure some of the cells with `jobs` processes at once, and fit.

    Raises:
        TrainingError: A process broke down; what it said last is told.
    """
    chosen = sample(cells)
    configs = [
        cell.train_config(study, data=data, out=Path("unused"), threads=study.threads) for cell in chosen
    ]
    job = json.dumps({"runs": [config.to_dict() for config in configs]})
    found = _in_processes(job, jobs)
    seconds = [statistics.fmean(each["seconds"][i] for each in found) for i in range(len(chosen))]
    points = [
        Point(backbone=cell.backbone, features=features_of(cell), seconds=value)
        for cell, value in zip(chosen, seconds, strict=True)
    ]
    start = statistics.fmean(each["start_seconds"] for each in found)
    return fit_cost(points, origin="calibration", start_seconds=start, jobs=jobs)


def sample(cells: Sequence[Cell]) -> list[Cell]:
    """Of each backbone and variant: the smallest, a middle and the largest, by counted FLOPs and by rows."""
    chosen: dict[tuple[str, int, int], Cell] = {}
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.backbone, cell.variant), []).append(cell)
    for group in groups.values():
        for measure in ("flops_per_token", "table_params"):
            order = sorted(group, key=lambda cell: (getattr(cell, measure), cell.top_k))
            for cell in (order[0], order[len(order) // 2], order[-1]):
                chosen.setdefault((cell.preset, cell.num_modulators, cell.top_k), cell)
    return list(chosen.values())


def _in_processes(job: str, count: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "retoken.study.calibrate"]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(count)
    ]
    try:
        for process in processes:  # all of them begin before any is waited for
            assert process.stdin is not None
            process.stdin.write(job)
            process.stdin.close()
            process.stdin = None
        return [_answer(process) for process in processes]
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate()
    if process.returncode:
        last = (err.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise TrainingError(f"calibration broke down: {last}")
    return json.loads(out)


def _measure(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from retoken.train import setup
    from retoken.train.bench import BareLoop
    from retoken.train.config import TrainConfig
    from retoken.train.world import open_world

    configs = [TrainConfig.from_dict(run) for run in runs]
    seconds, start = [], 0.0
    with open_world(configs[0].device, configs[0].threads) as world:
        store = setup.open_store(configs[0])
        for config in configs:
            loop = BareLoop(config, store, world, batches=4)
            start = start or time.process_time()  # since the interpreter began
            loop.train(WARM_UP, clip=True)
            turns = [_turn(loop, max(1, config.threads)) for _ in range(TURNS)]
            seconds.append(statistics.median(turns) / config.tokens_per_step)
            del loop
    return {"seconds": seconds, "start_seconds": start}


def _turn(loop: Any, threads: int) -> float:
    """Seconds a step."""
    steps, began, before = 0, time.perf_counter(), time.process_time()
    while (spent := time.perf_counter() - began) < TURN_SECONDS or not steps:
        loop.train(1, clip=True)
        steps += 1
    return min(spent, (time.process_time() - before) / threads) / steps


def main() -> int:
    """Measure what is on stdin."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from retoken.errors import RetokenError

    try:
        answers.write(json.dumps(_measure(json.load(sys.stdin)["runs"])))
        answers.flush()
        return 0
    except RetokenError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
