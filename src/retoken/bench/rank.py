"""A rank of the exchange bench: `python -m retoken.bench.rank OPTIONS`, started by `Crew`."""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from retoken.train.memory import keep_freed_memory

Case = Callable[[int], None]
"""Does so many steps; a collective."""


class Cases(ABC):
    """What a rank can be told to do, by name. Not constructed itself."""

    @abstractmethod
    def prepare(self, name: str) -> Case:
        """Before the clock starts."""

    @abstractmethod
    def report(self, name: str, steps: int) -> dict[str, Any]:
        """Behind the turn: numbers a step, for the answer."""

    @abstractmethod
    def audit(self, name: str) -> dict[str, Any]:
        """One step more, looked at closely; a collective."""


def serve(cases: Cases) -> None:
    """Answer turns until the input ends."""
    for line in sys.stdin:
        asked = json.loads(line)
        name, steps = asked["case"], asked["steps"]
        say(timed(cases, name, steps) if steps else cases.audit(name))


def timed(cases: Cases, name: str, steps: int) -> dict[str, Any]:
    """Seconds of the wall clock and of this process's CPUs, and what the case reports."""
    case = cases.prepare(name)
    dist.barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    case(steps)
    found = {"seconds": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return found | cases.report(name, steps)


def say(answer: dict[str, Any]) -> None:
    """One line."""
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Join the others, build the cases, serve."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    keep_freed_memory()
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    try:
        if options["part"] == "fetches":
            from retoken.bench.fetches import Fetches as Chosen
        else:
            from retoken.bench.ladder import Ladder as Chosen
        cases = Chosen(options)
    except Exception as error:
        say({"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})
        return
    say({"ready": {"torch": torch.__version__}})
    serve(cases)


if __name__ == "__main__":
    main()
