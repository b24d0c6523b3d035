"""Turns of a lookup's bench: calls on new ids each, timed one contender after the other and back again."""

from __future__ import annotations

import csv
import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retoken.bench.lookup_ids import Stream
from retoken.bench.lookup_room import Contender, Setting

STREAM = 24 << 20
"""Numbers of the memory that is read, or copied, for the bandwidth: 96 MiB, more than caches hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupTurn:
    """One turn, for a file of all of them."""

    setting: str
    """Its title."""
    tokens: int
    """T."""
    ids: str
    """Their kind."""
    contender: str
    """Its name; streams are "read" and "copy"."""
    repeat: int
    """From 0."""
    seconds: float
    """A call."""
    row_bytes: float
    """Bytes of a call's distinct rows; of a stream all it moved."""
    load: float
    """Of the machine in the minute before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """Something that takes turns."""

    contender: Contender
    """Whose."""
    turn: Callable[[], float]
    """Seconds of a call."""
    row_bytes: float
    """Of a call's distinct rows."""


def calls_of(tokens: int, layers: int = 1) -> int:
    """Calls of a turn."""
    return max(1, min(64, 2048 // tokens) // layers)


def cases_of(contenders: Sequence[Contender], ids: Stream, tokens: int, setting: Setting) -> list[Case]:
    distinct = ids.distinct(tokens)
    return [
        Case(
            contender=each,
            turn=functools.partial(_timed, each, ids, tokens),
            row_bytes=distinct * (setting.token_bytes if each.token_bytes is None else each.token_bytes),
        )
        for each in contenders
    ]


def _timed(contender: Contender, ids: Stream, tokens: int) -> float:
    calls = calls_of(tokens, contender.layers)
    batches, call = ids.take(calls, tokens), contender.call
    started = time.perf_counter()
    for batch in batches:
        call(batch)
    return (time.perf_counter() - started) / (calls * contender.layers)


@functools.cache
def streams() -> tuple[Case, ...]:
    """What the memory gives: a sum reads, a copy reads and writes half each."""
    x, y = torch.ones(STREAM), torch.ones(STREAM // 2)
    return (
        Case(
            contender=Contender(name="read", call=lambda _: x.sum()),
            turn=_seconds(x.sum),
            row_bytes=4 * STREAM,
        ),
        Case(
            contender=Contender(name="copy", call=lambda _: None),
            turn=_seconds(lambda: y.copy_(x[: len(y)])),
            row_bytes=4 * STREAM,
        ),
    )


def _seconds(move: Callable[[], Any]) -> Callable[[], float]:
    def turn() -> float:
        started = time.perf_counter()
        move()
        return time.perf_counter() - started

    return turn


def in_turns(cases: Sequence[Case], title: str, key: tuple[int, str], repeats: int) -> list[LookupTurn]:
    """Warmed up by one turn each, then one after the other and back again: neighbours are compared."""
    for case in cases:
        case.turn()
    found = []
    for repeat in range(repeats):
        for case in cases[:: 1 if repeat % 2 == 0 else -1]:
            where = {"setting": title, "tokens": key[0], "ids": key[1], "contender": case.contender.name}
            load, seconds = round(os.getloadavg()[0], 2), case.turn()
            found.append(
                LookupTurn(**where, repeat=repeat, seconds=seconds, row_bytes=case.row_bytes, load=load)
            )
    return found


def streamed(turns: Sequence[LookupTurn]) -> dict[tuple[str, int, str, int], list[float]]:
    """{(setting, T, ids, repeat): bytes a second of its streams}."""
    found: dict[tuple[str, int, str, int], list[float]] = {}
    for turn in turns:
        if turn.contender in ("read", "copy"):
            key = (turn.setting, turn.tokens, turn.ids, turn.repeat)
            found.setdefault(key, []).append(turn.row_bytes / turn.seconds)
    return found


def write(path: Path, turns: Sequence[LookupTurn]) -> None:
    """A CSV of all turns, a column a field."""
    names = list(LookupTurn.__dataclass_fields__)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([_short(getattr(turn, name)) for name in names] for turn in turns)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
