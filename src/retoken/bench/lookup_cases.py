"""Ways to look rows up and to use them: the fused kernels first, then every alternative in PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from retoken import ops
from retoken.bench.lookup_room import DEPTH, EPS, LAYERS, Contender, States, Table
from retoken.ops import Routing, fused, naive
from retoken.ops.fused import Near
from retoken.ops.quantize import LARGEST
from retoken.serving.stored import StoredRows

Build = Callable[[Table, States], list[Contender]]
Call = Callable[[Tensor], Any]
Layer = Callable[[fused.Room], Any]
"""What a layer does in the room of a pass."""
Wanted = Mapping[str, Callable[[Tensor], Any]]
"""{what is done: of ids [T], its result in float64}."""
OURS, COMPILED = "fused", "torch.compile"


def contenders(table: Table, states: States, *, compiled: bool) -> list[Contender]:
    """Ours first. With `compiled`, torch.compile's version of what is named "eager" as well."""
    found = BUILDS[table.setting.operation](table, states)
    eager = next((each for each in found if each.name == "eager"), None)
    if not compiled or eager is None:
        return found
    torch.compiler.reset()
    return [*found, Contender(name=COMPILED, call=torch.compile(eager.call, dynamic=False))]


def wanted(table: Table, states: States) -> Wanted:
    """What contenders must give, by the paper's equations in float64."""
    m, h, s, r = (
        x.double() for x in (states.increment_TD, states.hidden_TD, states.scale_D, states.router_ED)
    )
    chosen, weights = states.routing.chosen_TK, states.routing.weights_TK.double()

    def mixture(ids: Tensor) -> Tensor:
        return naive.mort_mix(table.wide(ids), torch.arange(len(ids)), chosen, weights)

    def gated(ids: Tensor) -> Tensor:
        return naive.retoken_increment(
            m, naive.retoken_gate(table.wide(ids), s, torch.arange(len(ids)), "rms", EPS)
        )

    by_operation: dict[str, Wanted] = {
        "gather": {"whole": table.wide},
        "gate": {"whole": gated, "gather": table.wide},
        "folded": {"whole": lambda ids: m * (1 + table.wide(ids))},
        "mix": {
            "whole": lambda ids: m + naive.mort_residual(mixture(ids), s, DEPTH, "rms", EPS),
            "mixture": mixture,
        },
        "route": {"whole": lambda _: ops.route(h, r, table.setting.top_k)},
    }
    return by_operation[table.setting.operation]


def _gather(table: Table, states: States) -> list[Contender]:
    """Ours as a mixture of one row, added to nothing: it reads zeros besides, which a gather need not."""
    weight, tokens = table.memory, len(states.increment_TD)
    nothing = torch.zeros_like(states.increment_TD)
    choice = Routing(nothing, torch.zeros(tokens, 1, dtype=torch.int64), torch.ones(tokens, 1))
    first = fused.Routed.of(choice)

    def layer(near: Near) -> Layer:
        mix = fused.Mix(near, None, 1.0, 0.0)
        return lambda room: mix(nothing, first, room)

    return [
        in_a_pass(table, layer),
        Contender(name="F.embedding", call=lambda ids: F.embedding(ids, weight)),
        Contender(name="index_select", call=lambda ids: weight.index_select(0, ids)),
    ]


def _gate(table: Table, states: States) -> list[Contender]:
    m, s, gain = states.increment_TD, states.scale_D, states.gain
    rows, given = rows_of(table), given_to(table)

    def layer(near: Near) -> Layer:
        return functools.partial(fused.Gate(near, s, gain, EPS), m)

    def eager(ids: Tensor) -> Tensor:
        return ops.gate(m, rows(ids), s, gain, EPS)

    def plain(ids: Tensor) -> Tensor:
        E, x = given(ids)
        return naive.retoken_increment(m, naive.retoken_gate(E, s, x, "rms", EPS)).to(m.dtype)

    return [
        in_a_pass(table, layer),
        *_two(eager, plain),
        Contender(name="gather alone", call=rows, does="gather"),
    ]


def _folded(table: Table, states: States) -> list[Contender]:
    m, rows, given = states.increment_TD, rows_of(table), given_to(table)

    def layer(near: Near) -> Layer:
        return functools.partial(fused.Gate(near, None, 1.0, 0.0), m)

    def eager(ids: Tensor) -> Tensor:
        return (m.float() * (1 + rows(ids).float())).to(m.dtype)

    def plain(ids: Tensor) -> Tensor:
        P, x = given(ids)  # less 1, as folded tables are kept
        return naive.retoken_increment(m, 1 + P[x]).to(m.dtype)

    return [in_a_pass(table, layer), *_two(eager, plain)]


def _mix(table: Table, states: States) -> list[Contender]:
    m, s, gain, given = states.increment_TD, states.scale_D, states.mixed_gain, given_to(table)
    chosen, weights, mixture = states.routing.chosen_TK, states.routing.weights_TK, mixture_of(table, states)
    routed = fused.Routed.of(states.routing)

    def layer(near: Near) -> Layer:
        mix = fused.Mix(near, s, gain, EPS)
        return lambda room: mix(m, routed, room)

    def eager(ids: Tensor) -> Tensor:
        return (m.float() + ops.residual(mixture(ids), s, gain, EPS)).to(m.dtype)

    def plain(ids: Tensor) -> Tensor:
        mixed = naive.mort_mix(*given(ids), chosen, weights)
        return (m + naive.mort_residual(mixed, s, DEPTH, "rms", EPS)).to(m.dtype)

    found = [in_a_pass(table, layer), *_two(eager, plain)]
    if table.setting.rows in LARGEST:
        return found
    return [
        *found,
        Contender(name="F.embedding_bag, mixture alone", call=_bag(table, states), does="mixture"),
    ]


def _bag(table: Table, states: States) -> Callable[[Tensor], Tensor]:
    flat, experts = table.memory.flatten(0, -2), table.setting.experts
    chosen, weights = states.routing.chosen_TK, states.routing.weights_TK.to(flat.dtype)

    def bag(ids: Tensor) -> Tensor:
        index = ids.unsqueeze(-1) * experts + chosen
        return F.embedding_bag(index, flat, per_sample_weights=weights, mode="sum")

    return bag


def _route(table: Table, states: States) -> list[Contender]:
    h, r, top_k = states.hidden_TD, states.router_ED, table.setting.top_k

    def plain(_: Tensor) -> Routing:
        g = naive.mort_logits(h, r.T)
        return Routing(g, *naive.mort_weights(g, top_k))

    def layer(_: Near) -> Layer:
        choose = fused.Route(r, top_k)
        return lambda room: choose(h, room).routing

    return [in_a_pass(table, layer), *_two(lambda _: ops.route(h, r, top_k), plain)]


def in_a_pass(table: Table, layer: Callable[[Near], Layer]) -> Contender:
    """What a layer's kernels do in a forward pass: made ready before it, with what a pass makes once for all.

    Args:
        table: the rows.
        layer: from where a layer's rows lie, what it does in a pass's room.
    """
    acts = [layer(table.near(number)) for number in range(LAYERS)]

    def call(ids: Tensor) -> Any:
        room, found = fused.Room(ids.shape, table.setting.width, fused.Places.of(ids), LAYERS), None
        for act in acts:
            found = act(room)
        return found

    return Contender(name=OURS, call=call, layers=LAYERS)


def _two(eager: Call, plain: Call) -> list[Contender]:
    """The operators that a kernel stands for, and the equations as written."""
    return [Contender(name="eager", call=eager), Contender(name="naive", call=plain)]


BUILDS: dict[str, Build] = {"gather": _gather, "gate": _gate, "folded": _folded, "mix": _mix, "route": _route}
"""{operation: its contenders}."""


def rows_of(table: Table) -> Callable[[Tensor], Tensor]:
    """Eager: of ids [T], a ReToken table's rows [T, D], decoded where they are short."""
    if table.setting.rows not in LARGEST:
        return lambda ids: F.embedding(ids, table.memory)
    rows, scales = table.views
    return lambda ids: StoredRows(ids, rows, scales).lookup()


def mixture_of(table: Table, states: States) -> Callable[[Tensor], Tensor]:
    """Eager: of ids [T], the mixture [T, D] of a MoRT table's rows; of short ones the chosen are decoded."""
    setting, (_, chosen, weights) = table.setting, states.routing
    if setting.rows not in LARGEST:
        flat = table.memory.flatten(0, -2)
        return lambda ids: ops.mix_rows(flat, ids.unsqueeze(-1) * setting.experts + chosen, weights)
    rows, scales = table.views
    return lambda ids: StoredRows(ids, rows, scales).mix(chosen, weights)


def given_to(table: Table) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Of ids [T], what the equations take: a table and numbers of its rows; short rows are decoded before."""
    if table.setting.rows not in LARGEST:
        return lambda ids: (table.memory, ids)
    rows, scales = table.views
    return lambda ids: (StoredRows(ids, rows, scales).lookup(), torch.arange(len(ids)))
