"""Side-by-side timings on a machine that is never quite idle: interleaved, repeated, with their spread."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

K = TypeVar("K")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Median, and the quartiles that hold half of the repeats."""

    median: float
    """The middle one."""
    low: float
    """A quarter is below."""
    high: float
    """A quarter is above."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of two or more values."""
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high)


def interleaved(
    cases: Mapping[K, Callable[[], None]], *, repeats: int, warmup: int = 1
) -> dict[K, list[float]]:
    """Seconds of each case, `repeats` times, one case after the other and back again.

    A slow moment of the machine then falls on neighbours, and the ratio within a repeat stays fair.
    """
    for case in cases.values():
        for _ in range(warmup):
            case()
    seconds: dict[K, list[float]] = {name: [] for name in cases}
    for repeat in range(repeats):
        order = list(cases)[:: 1 if repeat % 2 == 0 else -1]
        for name in order:
            started = time.perf_counter()
            cases[name]()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratios(of: Sequence[float], to: Sequence[float]) -> Spread:
    """of / to within each repeat."""
    return Spread.of([a / b for a, b in zip(of, to, strict=True)])


def machine(threads: int = 0) -> dict[str, Any]:
    """What a timing depends on besides the code; `threads`: what it runs with, 0 for PyTorch's choice."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
