"""Lookups by the fused CPU kernels against every alternative, in turns: ratios, shares of the bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retoken.bench import lookup_cases, lookup_gemma
from retoken.bench.lookup_ids import Ids, stream
from retoken.bench.lookup_peer import Peer
from retoken.bench.lookup_room import Contender, Setting, States, Table
from retoken.bench.lookup_turns import Case, LookupTurn, cases_of, in_turns, streamed, streams
from retoken.errors import RetokenError
from retoken.train.timing import Spread, ratios

CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2**-6}
"""By the states' type: how far a token's result may be from float64's, of its length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LookupRate:
    """One contender in one setting, with so many tokens a call."""

    setting: Setting
    """The table, and what is done."""
    tokens: int
    """T, of a call."""
    ids: str
    """"fresh": rows no cache holds; "text": as often as in text; "none" where no rows are read."""
    name: str
    """Of the contender."""
    does: str
    """"whole": what ours does; otherwise how much of it, or what instead."""
    ours_over_it: Spread
    """Its time over ours within a repeat: above 1 ours is faster."""
    microseconds: Spread
    """A call; of Gemma 3n a layer of it."""
    rows_per_second: float
    """Rows that it has read, over the median time."""
    row_bytes: float
    """Bytes of a call's distinct rows."""
    bound_microseconds: float
    """Those over the bandwidth: no lookup of rows from memory can be faster."""
    of_bandwidth: Spread | None
    """Bytes of rows a second over what the fastest stream read in the same repeat; None without rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lookups:
    """All of them."""

    bandwidth: float
    """Gigabytes a second of the fastest stream, median of all repeats."""
    rates: list[LookupRate]
    """By setting, tokens and ids; ours first."""
    turns: list[LookupTurn]
    """What they were made of."""
    peers: list[str]
    """Which FBGEMM ran, or why none did."""


def measure(
    settings: Sequence[Setting],
    *,
    tokens: Sequence[int],
    ids: Sequence[Ids],
    repeats: int,
    compiled: bool = True,
    peer_python: Path | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Lookups:
    """Every setting, one after the other; within one, all contenders in turns, forth and back.

    Args:
        settings: Tables, and what is done; one table is in memory at a time.
        tokens: T, of a call.
        ids: Kinds of ids.
        repeats: Turns of each contender, at least 2.
        compiled: Whether torch.compile takes part.
        peer_python: A Python with fbgemm-gpu-cpu; None: that peer is left out.
        tell: Called with each setting's title before it starts.

    Raises:
        RetokenError: a contender's result is not what the equations give.
    """
    rates, turns, peers = [], [], []
    for setting in settings:
        tell(setting.title)
        with ExitStack() as stack, torch.no_grad():
            peer = stack.enter_context(Peer(peer_python, setting, tokens, ids))
            peers += [peer.said] if peer.said and peer.said not in peers else []
            for key, cases in _groups(setting, tokens, ids, compiled, peer):
                found = in_turns(cases, setting.title, key, repeats)
                turns += found
                rates += summary(setting, cases, found)
    speeds = [max(s) for s in streamed(turns).values()]
    return Lookups(bandwidth=statistics.median(speeds) / 1e9, rates=rates, turns=turns, peers=peers)


def _groups(setting: Setting, tokens: Sequence[int], ids: Sequence[Ids], compiled: bool, peer: Peer) -> Any:
    """((T, kind of ids), its cases), each built when it is asked for."""
    table = Table(setting)
    gemma = lookup_gemma.model(setting) if setting.operation == "gemma" else None
    if gemma is not None:
        lookup_gemma.fill(gemma)
    for count in tokens:
        states = States(setting, count)
        if gemma is None:
            found = lookup_cases.contenders(table, states, compiled=compiled)
            wanted = lookup_cases.wanted(table, states)
        else:
            found = lookup_gemma.contenders(table, states, gemma)
            wanted = lookup_gemma.wanted(table, states, gemma)
        check(found, wanted, stream("text", setting.vocab_size, count).take(1, count)[0], setting)
        for kind in ids if setting.token_bytes else ids[:1]:
            own = stream(kind, setting.vocab_size, count)
            label = kind if setting.token_bytes else "none"
            yield (
                (count, label),
                [*cases_of(found, own, count, setting), *peer.cases(own, count, kind), *streams()],
            )


def check(
    contenders: Sequence[Contender],
    wanted: Mapping[str, Callable[[Tensor], Any]],
    ids: Tensor,
    setting: Setting,
) -> None:
    """All give what they must for ids [T].

    Raises:
        RetokenError: one does not.
    """
    for each in contenders:
        if each.does not in wanted:
            continue
        found, right = _numbers(each.call(ids)), _numbers(wanted[each.does](ids))
        for a, b in zip(found, right, strict=True):
            if a.shape != b.shape or not _close(a.double(), b.double(), CLOSE[setting.states]):
                raise RetokenError(f"{setting.title}: {each.name} does not give what the equations give")


def _close(a: Tensor, b: Tensor, near: float) -> bool:
    return bool(((a - b).norm(dim=-1) <= near * b.norm(dim=-1)).all())


def _numbers(found: Any) -> list[Tensor]:
    """Of a routing the logits, those chosen, and the weights: of equal ones either may be chosen."""
    if isinstance(found, Tensor):
        return [found]
    return [found.logits_TE, found.logits_TE.gather(-1, found.chosen_TK), found.weights_TK]


def summary(setting: Setting, cases: Sequence[Case], turns: Sequence[LookupTurn]) -> list[LookupRate]:
    """Rates of one group's turns; the first case is ours."""
    seconds = {
        case.contender.name: [turn.seconds for turn in turns if turn.contender == case.contender.name]
        for case in cases
    }
    fastest = [max(found) for found in streamed(turns).values()]
    return [
        _rate(
            setting, case, turns[0], seconds[case.contender.name], seconds[cases[0].contender.name], fastest
        )
        for case in cases
        if case.contender.name not in ("read", "copy")
    ]


def _rate(
    setting: Setting,
    case: Case,
    first: LookupTurn,
    mine: list[float],
    ours: list[float],
    fastest: list[float],
) -> LookupRate:
    size, each = case.row_bytes, setting.top_k if case.contender.token_bytes is None else 1
    rows = first.tokens * each if size else 0
    return LookupRate(
        setting=setting,
        tokens=first.tokens,
        ids=first.ids,
        name=case.contender.name,
        does=case.contender.does,
        ours_over_it=ratios(mine, ours),
        microseconds=Spread.of([s * 1e6 for s in mine]),
        rows_per_second=rows / statistics.median(mine),
        row_bytes=size,
        bound_microseconds=size / statistics.median(fastest) * 1e6,
        of_bandwidth=ratios([size / s for s in mine], fastest) if size else None,
    )
