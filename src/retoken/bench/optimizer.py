"""Row updates against peers: rows a second, share of the memory bandwidth, growth with the vocabulary."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from retoken.bench.peer import PeerProcess
from retoken.bench.updates import (
    ADDITION,
    FBGEMM,
    OURS,
    PEERS,
    STEPS,
    STREAMS,
    Step,
    Work,
    touched_rows,
)
from retoken.errors import ConfigError
from retoken.train.timing import Spread, ratios

FBGEMM_SCRIPT = Path(__file__).with_name("fbgemm_peer.py")


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """One optimizer at one vocabulary size."""

    name: str
    """Of the optimizer."""
    vocab_size: int
    """V."""
    rows_per_second: Spread
    """Touched rows; a row is all numbers a token owns in one layer."""
    gigabytes_per_second: float
    """Bytes that the update of touched rows has to move, over the median time."""
    of_bandwidth: Spread
    """Those bytes over what the fastest stream moved in the same repeat."""
    of_addition: Spread
    """The same over what a bare addition to the same rows moved: without what scattering costs anyone."""
    growth: Spread | None
    """Time over the time at the smallest vocabulary, same touched rows; None for the smallest."""
    ours_over_it: Spread
    """Rows a second of RowAdamW (for row-wise peers: of RowWiseAdam) over it, within a repeat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """All of them, measured in turns."""

    width: int
    """Numbers a row."""
    touched: int
    """Rows a step touches."""
    bandwidth: float
    """Gigabytes a second of the fastest stream, median."""
    streams: dict[str, float]
    """{stream: gigabytes a second}, medians."""
    rates: list[Rate]
    """Ours, then peers, by vocabulary size."""
    peer: str
    """Which FBGEMM ran, or why none did."""


Seconds = dict[tuple[str, int], list[float]]


def measure(
    *,
    vocab_sizes: Sequence[int],
    touched: int,
    width: int,
    repeats: int,
    peer_python: Path | None = None,
) -> Measured:
    """Time every optimizer at every vocabulary size, one after the other and back again.

    Args:
        vocab_sizes: V, ascending; the same number of rows is touched in each.
        touched: Rows a step touches. Their bytes should be several times the processor's cache.
        width: Numbers a row.
        repeats: Turns, at least 2.
        peer_python: A Python with fbgemm-gpu-cpu; None: that peer is left out.

    Raises:
        ConfigError: More touched rows than the smallest vocabulary has.
    """
    if touched > min(vocab_sizes):
        raise ConfigError(
            f"touched is {touched}; accepted: up to the smallest vocabulary, {min(vocab_sizes)}"
        )
    works = [Work(vocab_size=v, width=width, ids=touched_rows(v, touched)) for v in sorted(vocab_sizes)]
    with ExitStack() as stack:
        cases = _our_cases(works)
        peer = _fbgemm(peer_python, works, cases, stack)
        seconds = _in_turns(cases, repeats)
    return _summary(seconds, works, peer)


def _our_cases(works: Sequence[Work]) -> dict[tuple[str, int], Callable[[], float]]:
    """{(name, V): a turn that returns its seconds}; streams have V = 0."""
    cases = {(case.name, 0): functools.partial(_timed, case.build(works[0])) for case in STREAMS}
    for work in works:
        for case in (*OURS, ADDITION, *PEERS):
            cases[case.name, work.vocab_size] = functools.partial(_timed, case.build(work))
    return cases


def _fbgemm(
    python: Path | None,
    works: Sequence[Work],
    cases: dict[tuple[str, int], Callable[[], float]],
    stack: ExitStack,
) -> str:
    """Add FBGEMM's turns; says which, or why there are none."""
    if python is None:
        return "FBGEMM did not run: no --peer-python was given"
    options = {
        "threads": torch.get_num_threads(),
        "width": works[0].width,
        "steps": STEPS,
        "kinds": list(FBGEMM),
        "ids": [(work.vocab_size, [ids.tolist() for ids in work.ids]) for work in works],
    }
    process = stack.enter_context(PeerProcess(python, FBGEMM_SCRIPT, options))
    if process.failed:
        return f"FBGEMM did not run under {python}: {process.failed}"
    for work in works:
        for kind, (name, _) in FBGEMM.items():
            cases[name, work.vocab_size] = functools.partial(process.turn, f"{kind} {work.vocab_size}")
    return (
        f"fbgemm_gpu {process.about['fbgemm_gpu']} on torch {process.about['torch']}; it has no Adam on a CPU"
    )


def _timed(move: Step) -> float:
    """Seconds of a step, over some in a row: a model's tables are moved one after the other, too."""
    started = time.perf_counter()
    for step in range(STEPS):
        move(step)
    return (time.perf_counter() - started) / STEPS


def _in_turns(cases: dict[tuple[str, int], Callable[[], float]], repeats: int) -> Seconds:
    """Neighbours in time are compared: forth and back, so that a slow moment falls on all alike."""
    for case in cases.values():
        case()
    seconds: Seconds = {name: [] for name in cases}
    for repeat in range(repeats):
        for name in list(cases)[:: 1 if repeat % 2 == 0 else -1]:
            seconds[name].append(cases[name]())
    return seconds


def _summary(seconds: Seconds, works: Sequence[Work], peer: str) -> Measured:
    first, numbers = works[0], works[0].numbers
    streams = {
        case.name: [case.bytes_per_number * numbers / s for s in seconds[case.name, 0]] for case in STREAMS
    }
    fastest = max(streams.values(), key=statistics.median)
    size = {case.name: case.bytes_per_number for case in (*OURS, ADDITION, *PEERS)} | dict(FBGEMM.values())
    speeds = {key: [size[key[0]] * numbers / s for s in found] for key, found in seconds.items() if key[1]}
    rates = [
        Rate(
            name=name,
            vocab_size=vocab,
            rows_per_second=Spread.of([first.touched / s for s in found]),
            gigabytes_per_second=size[name] * numbers / statistics.median(found) / 1e9,
            of_bandwidth=ratios(speeds[name, vocab], fastest),
            of_addition=ratios(speeds[name, vocab], speeds[ADDITION.name, vocab]),
            growth=None if vocab == first.vocab_size else ratios(found, seconds[name, first.vocab_size]),
            ours_over_it=ratios(found, seconds[_comparable(name), vocab]),
        )
        for (name, vocab), found in seconds.items()
        if vocab
    ]
    return Measured(
        width=first.width,
        touched=first.touched,
        bandwidth=statistics.median(fastest) / 1e9,
        streams={name: statistics.median(found) / 1e9 for name, found in streams.items()},
        rates=rates,
        peer=peer,
    )


def _comparable(name: str) -> str:
    return "RowWiseAdam" if "row-wise" in name or name == "RowWiseAdam" else "RowAdamW"
