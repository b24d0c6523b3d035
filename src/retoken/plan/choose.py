"""Which layout and option: the one whose busiest rank moves the fewest bytes a step."""

from __future__ import annotations

from dataclasses import dataclass

from retoken.plan import traffic
from retoken.plan.flow import Traffic
from retoken.plan.frequency import Frequencies
from retoken.plan.shape import Batch, Grid, Tables, grids, require
from retoken.plan.traffic import OPTIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A layout with an option, and what a step of it moves."""

    grid: Grid
    """Owners."""
    option: str
    """"early", "routed" or "mixed"."""
    traffic: Traffic
    """Of a whole step: all micro-batches."""

    @property
    def bytes(self) -> float:
        """Expected bytes per step over the link of the busiest rank, the larger of sent and received."""
        return self.traffic.flow().busiest

    @property
    def messages(self) -> int:
        """Messages a rank sends per step."""
        return self.traffic.messages()

    def __str__(self) -> str:
        return f"layout {self.grid}, option {self.option}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The best candidate by bytes, and all of them."""

    candidates: tuple[Candidate, ...]
    """Fewest bytes first; among equals fewer messages first."""

    @property
    def best(self) -> Candidate:
        """The one to take."""
        return self.candidates[0]

    @property
    def grid(self) -> Grid:
        """Its owners."""
        return self.best.grid

    @property
    def option(self) -> str:
        """Its option."""
        return self.best.option

    def __str__(self) -> str:
        """One line for people: the choice, its bytes, and the one behind it."""
        text = f"{self.best}: {megabytes(self.best.bytes)} a step and rank"
        if len(self.candidates) > 1:
            second = self.candidates[1]
            text += f"; next {second}: {megabytes(second.bytes)}"
        return text


def emp_ranks(emp: int, ranks: int) -> int:
    """Ranks that share one copy of the tables: `emp`, or all with 0.

    Raises:
        ConfigError: it does not divide the ranks.
    """
    require(ranks >= 1, "ranks", ranks, "an integer from 1")
    fits = emp == 0 or (emp > 0 and ranks % emp == 0)
    require(fits, "tables.ranks", f"{emp} with {ranks} ranks", f"a divisor of {ranks}, or 0 for all of them")
    return emp or ranks


def choose(
    tables: Tables,
    batch: Batch,
    frequencies: Frequencies,
    *,
    emp: int = 0,
    layout: str = "auto",
    option: str = "auto",
    forwards: int = 1,
    recomputed: bool = False,
) -> Choice:
    """Expected bytes of every layout and option that is accepted, the fewest first.

    It depends on nothing but its arguments, so every rank comes to the same choice.

    Args:
        tables: rows and their sizes.
        batch: tokens of a micro-batch, micro-batches, ranks.
        frequencies: of the token ids, of the tables' vocabulary.
        emp: ranks that share one copy of the tables; 0: all.
        layout: "V", "E", "VxE" or "auto".
        option: "early", "routed", "mixed" or "auto".
        forwards: forward passes per micro-batch; 2 where the routers' loads are counted ahead.
        recomputed: whether the backward pass computes activations again, and asks again for rows.

    Raises:
        ConfigError: a word that is not accepted, or a layout in which a rank would own nothing.
    """
    size = emp_ranks(emp, batch.ranks)
    accepted = OPTIONS if tables.mixes else OPTIONS[:1]
    require(option in ("auto", *accepted), "tables.exchange", repr(option), ", ".join(("auto", *accepted)))
    options = accepted if option == "auto" else (option,)
    found = [
        Candidate(
            grid=grid,
            option=name,
            traffic=step_traffic(tables, grid, name, batch, frequencies, forwards, recomputed),
        )
        for grid in grids(tables, size, layout)
        for name in options
    ]
    return Choice(candidates=tuple(sorted(found, key=lambda each: (each.bytes, each.messages))))


def step_traffic(
    tables: Tables,
    grid: Grid,
    option: str,
    batch: Batch,
    frequencies: Frequencies,
    forwards: int = 1,
    recomputed: bool = False,
) -> Traffic:
    """Expected traffic of all micro-batches of a step."""
    one = traffic.expected(frequencies, batch.tokens, tables, grid, option, ranks=batch.ranks)
    if recomputed:
        one = traffic.recomputed(one, option)
    return one.times(forward=forwards * batch.micro_batches, backward=batch.micro_batches)


def megabytes(size: float) -> str:
    """Bytes in three digits, with a unit."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= 0.9995 * unit:
            return f"{size / unit:.3g} {name}"
    return f"{size:.3g} B"
