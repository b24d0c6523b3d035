"""Runs in turns: each reads a prompt and decodes what follows it, one case after the other and back again."""

from __future__ import annotations

import csv
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retoken.bench.decode.cases import BASELINE, Case
from retoken.bench.decode.passes import Passes, repeatable
from retoken.bench.decode.prompts import Prompt
from retoken.errors import TrainingError

OnRun = Callable[[], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """One run of one case."""

    variant: str
    placement: str
    batch: int
    prompt: int
    """Tokens of a prompt."""
    repeat: int
    ttft: float
    """Seconds from the prompt to its next token."""
    tpot: float
    """Seconds a further token, mean over the run."""
    load: float
    """Of the machine in the minute before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """A case's time over the baseline's in the same turn."""

    median: float
    low: float
    """The 95 % interval of the median, by order statistics: no shape of the spread is assumed."""
    high: float
    count: int
    """Turns."""

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
        """Of the turns of both."""
        each = sorted(a / b for a, b in zip(ours, theirs, strict=True))
        first = _rank(len(each))
        return cls(median=statistics.median(each), low=each[first], high=each[-1 - first], count=len(each))


def _rank(count: int) -> int:
    """How many of the smallest values, and of the largest, a 95 % interval of the median leaves out."""
    below, left_out = 0.0, 0
    for k in range(count // 2):
        below += math.comb(count, k) / 2**count
        if below > 0.025:
            break
        left_out = k
    return left_out


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """One case at one batch and prompt length."""

    variant: str
    placement: str
    batch: int
    prompt: int
    ttft_ms: float
    tpot_ms: float
    tpot_std_ms: float
    ttft: Ratio
    tpot: Ratio


class Run:
    """A case on its way over a prompt and what follows it."""

    def __init__(self, case: Case, passes: Passes, prompt: Prompt) -> None:
        case.prepare(torch.cat([prompt.ids.flatten(), prompt.following.flatten()]).unique())
        self.case, self.passes, self.prompt = case, passes, prompt.to(case.model.device)
        self.seconds: list[float] = []
        """Of each pass so far, until the host knows the token."""
        self.logits: Tensor | None = None
        """[B, 1, V] of the latest."""

    def step(self) -> None:
        """The next pass: over the prompt, or over one more token."""
        number = len(self.seconds)
        self.case.between()
        started = time.perf_counter()
        if number:
            logits = self.passes.further(self.prompt.following[:, number - 1 : number])
        else:
            logits = self.passes.first(self.prompt.ids)
        logits[:, -1].argmax(-1).cpu()
        self.seconds.append(time.perf_counter() - started)
        self.logits = logits

    def finish(self) -> tuple[float, float, Tensor]:
        """Seconds to the first token and a further token, and the last logits [B, V]."""
        while len(self.seconds) <= self.prompt.following.shape[1]:
            self.step()
        first, *further = self.seconds
        return first, statistics.fmean(further), self.logits[:, -1].clone()  # pyright: ignore


@torch.inference_mode()
def run(case: Case, passes: Passes, prompt: Prompt) -> tuple[float, float, Tensor]:
    """Seconds to the first token and a further token, until the host knows it, and the last logits [B, V]."""
    return Run(case, passes, prompt).finish()


def _runs(
    cases: Sequence[Case], passes: dict[str, Passes], prompt: Prompt, turn: int, alone: bool
) -> Iterator[Run]:
    """All cases over a prompt, pass by pass in turns, or one after the other."""
    order = list(cases)[:: 1 if turn % 2 == 0 else -1]
    if alone:
        yield from (Run(case, passes[case.name], prompt) for case in order)
        return
    runs = [Run(case, passes[case.name], prompt) for case in order]
    for step in range(1 + prompt.following.shape[1]):
        first = (step + turn) % len(runs)
        for one in runs[first:] + runs[:first]:
            one.step()
    yield from runs


@torch.inference_mode()
def repeats(case: Case, prompt: Prompt, times: int = 3) -> bool:
    """Whether a case gives the same logits each time."""
    passes = case.passes_over(prompt)
    found = [run(case, passes, prompt)[2] for _ in range(times)]
    return all(torch.equal(found[0], other) for other in found[1:])


def _attention(case: Case, prompt: Prompt) -> AbstractContextManager[Any]:
    """PyTorch's choice, unless the plain backbone on a GPU then differs from itself."""
    as_it_is = case.model.device.type == "cpu" or repeats(case, prompt)
    return nullcontext() if as_it_is else repeatable()


@torch.inference_mode()
def take(
    cases: Sequence[Case], prompts: Sequence[Prompt], on_run: OnRun, alone: bool = False
) -> list[Reading]:
    """Every case on every prompt, pass by pass in turns; a variant's placements must agree bit for bit.

    So what else a machine does meets all alike. The first prompt warms up and is not counted. Attention is
    PyTorch's choice where that gives a plain backbone the same logits each time.

    Args:
        cases: the plain backbone first.
        prompts: of one size.
        on_run: called after each run.
        alone: each has the prompt to itself, as where they compete for memory. So it is, too, where something
            is done between a case's passes, as a file's cache is dropped that others read.

    Raises:
        TrainingError: outputs differ between placements that read the same rows.
    """
    with _attention(cases[0], prompts[0]):
        return _take(cases, prompts, on_run, alone or not all(case.undisturbed for case in cases))


def _take(cases: Sequence[Case], prompts: Sequence[Prompt], on_run: OnRun, alone: bool) -> list[Reading]:
    found, passes = [], {case.name: case.passes_over(prompts[0]) for case in cases}
    for repeat, prompt in enumerate(prompts, start=-1):
        logits: dict[str, tuple[str, Tensor]] = {}
        load = os.getloadavg()[0]
        for one in _runs(cases, passes, prompt, repeat, alone):
            ttft, tpot, last = one.finish()
            _check_equal(one.case, last, logits)
            if repeat >= 0:
                found.append(_reading(one.case, prompt, repeat, ttft, tpot, load))
            on_run()
    return found


def _check_equal(case: Case, last: Tensor, logits: dict[str, tuple[str, Tensor]]) -> None:
    if case.rounds_otherwise:
        return
    name, other = logits.setdefault(case.variant, (case.name, last))
    if not torch.equal(last, other):
        raise TrainingError(f"{case.name} and {name} give different logits for the same prompt")


def _reading(case: Case, prompt: Prompt, repeat: int, ttft: float, tpot: float, load: float) -> Reading:
    return Reading(
        variant=case.variant,
        placement=case.placement,
        batch=prompt.ids.shape[0],
        prompt=prompt.ids.shape[1],
        repeat=repeat,
        ttft=ttft,
        tpot=tpot,
        load=round(load, 2),
    )


def summarize(readings: Sequence[Reading]) -> list[Summary]:
    """Every case over the baseline of the same turns."""
    groups: dict[tuple[int, int], dict[tuple[str, str], list[Reading]]] = {}
    for reading in readings:
        own = groups.setdefault((reading.batch, reading.prompt), {})
        own.setdefault((reading.variant, reading.placement), []).append(reading)
    return [
        _summary(key, case, own, cases[BASELINE, ""])
        for key, cases in groups.items()
        for case, own in cases.items()
    ]


def _summary(
    key: tuple[int, int], case: tuple[str, str], own: list[Reading], plain: list[Reading]
) -> Summary:
    return Summary(
        variant=case[0],
        placement=case[1],
        batch=key[0],
        prompt=key[1],
        ttft_ms=1e3 * statistics.median(r.ttft for r in own),
        tpot_ms=1e3 * statistics.median(r.tpot for r in own),
        tpot_std_ms=1e3 * statistics.stdev(r.tpot for r in own),
        ttft=Ratio.of([r.ttft for r in own], [r.ttft for r in plain]),
        tpot=Ratio.of([r.tpot for r in own], [r.tpot for r in plain]),
    )


def write(path: Path, readings: Sequence[Reading]) -> None:
    """All runs as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Reading)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(reading) for reading in readings)
