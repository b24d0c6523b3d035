"""Turns of several crews, one after the other and back again: a slow moment falls on neighbours."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retoken.bench.crew import Crew
from retoken.train.timing import Spread, ratios


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One turn of one case."""

    case: str
    """Its name."""
    repeat: int
    """From 0."""
    steps: int
    """Steps it took."""
    seconds: float
    """A step, by the wall clock of the slowest rank."""
    cpu: float
    """CPU seconds a step, of all ranks together."""
    sent: float
    """Bytes a step that the busiest rank sent to others, where they are counted."""
    load: float
    """Of the machine in the minute before."""


class Turns:
    """All turns of a bench."""

    def __init__(self, turns: Sequence[Turn]) -> None:
        self.turns = list(turns)

    def seconds(self, case: str) -> list[float]:
        """A step's, by repeat."""
        return [turn.seconds for turn in self.turns if turn.case == case]

    def cpu(self, case: str) -> list[float]:
        """A step's, by repeat."""
        return [turn.cpu for turn in self.turns if turn.case == case]

    def speed(self, case: str, over: str, *, cpu: bool = False) -> Spread:
        """Of a case over another's, within each repeat: 2 is twice as fast."""
        of = self.cpu if cpu else self.seconds
        return ratios(of(over), of(case))


def take(cases: Mapping[str, tuple[Crew, str]], *, steps: int, repeats: int) -> Turns:
    """Warm each case up by one turn, then time it `repeats` times.

    Args:
        cases: {name: (who does it, what it is called there)}.
        steps: Of one turn.
        repeats: Turns of each case.
    """
    for crew, called in cases.values():
        crew.turn(case=called, steps=steps)
    found = []
    for repeat in range(repeats):
        for name in list(cases)[:: 1 if repeat % 2 == 0 else -1]:
            crew, called = cases[name]
            found.append(_turn(name, crew, called, repeat, steps))
    return Turns(found)


def _turn(name: str, crew: Crew, called: str, repeat: int, steps: int) -> Turn:
    load = os.getloadavg()[0]
    answers = crew.turn(case=called, steps=steps)
    return Turn(
        case=name,
        repeat=repeat,
        steps=steps,
        seconds=max(answer["seconds"] for answer in answers) / steps,
        cpu=sum(answer["cpu"] for answer in answers) / steps,
        sent=max(answer.get("sent", 0.0) for answer in answers),
        load=round(load, 2),
    )


def write(path: Path, parts: Mapping[str, Turns]) -> None:
    """A CSV of all turns: the bench's part, and what `Turn` holds."""
    names = ("part", *Turn.__dataclass_fields__)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for part, turns in parts.items():
            for turn in turns.turns:
                writer.writerow([part, *(getattr(turn, name) for name in names[1:])])
