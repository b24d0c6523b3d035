"""Bytes of the exchange between ranks that hold parts of the tables (App. B), exactly and expected.

A rank asks owners, owners answer. N ranks are N / G emp groups of G = S_V * S_E consecutive ranks each; rank
p * G + g asks the ranks of its own group p, and owns part g there. Per micro-batch rank r has T_r tokens;
u[r, v] of its ids, each counted once, belong to vocabulary shard v, and so do t[r, v] of its tokens. Between
rank r and owner (v, e) of its group, which holds E_e modulators, travel these bytes, b and g being the bytes
of an element of a row and of its gradient, D the width, L the layers with a table:

    phase               way         bytes                                options
    counts              to owner    8, and routed 8 L more, mixed 8      all
    ids                 to owner    8 u[r, v]                            all
    rows                back        L u[r, v] E_e D b                    early
    gradients           to owner    L u[r, v] E_e D g                    early
    pairs               to owner    8 sum_l q[r, l, v, e]                routed
    rows                back        sum_l q[r, l, v, e] D b              routed
    gradients           to owner    sum_l q[r, l, v, e] D g              routed
    slots               to owner    4 t[r, v]                            mixed
    weights             to owner    4 L t[r, v] E_e                      mixed
    mixtures            back        4 L t[r, v] D                        mixed
    gradients           to owner    4 L t[r, v] D                        mixed
    weight gradients    back        4 L t[r, v] E_e                      mixed

q[r, l, v, e]: distinct pairs (token id, chosen modulator) of rank r in layer l that owner (v, e) holds.
Counts, ids and pairs are int64, slots (a token's place in the ids its rank asked for, the same for all
layers) int32, weights and mixtures float32. With several emp groups, their P = N / G owners of the same part
exchange gradients: with U[p, v] ids that any rank of group p asked for, owner (p, v, e) sends each of the
other P - 1

    replica counts      to each     8 L                                  all
    replica ids         to each     8 L U[p, v]                          all
    replica gradients   to each     L U[p, v] E_e D g                    all

"sharded", the ladder's rung without deduplication, is "routed" with every (token, chosen modulator) a pair,
and without ids: counts and pairs are all that is asked. Bytes a rank has for itself travel no link; they are
`local`. A forward pass without gradient asks and is answered, and sends no gradients. Where activations are
recomputed in the backward pass, layers that ask for themselves ask once more: `recomputed`.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from retoken.errors import ConfigError
from retoken.plan import asked as asked_by
from retoken.plan.asked import Asked, Chosen, Ids
from retoken.plan.flow import Lane, Traffic, Way
from retoken.plan.frequency import Frequencies
from retoken.plan.shape import Grid, Tables

Option = Literal["early", "routed", "mixed"]
OPTIONS: tuple[Option, ...] = get_args(Option)
RUNGS = (*OPTIONS, "sharded")
COUNT, ID, SLOT, FLOAT = 8, 8, 4, 4
"""Bytes of a count, of an id, of a slot, and of an element of weights and mixtures."""
_PER_LAYER = {
    "early": (),
    "routed": ("pairs", "rows"),
    "sharded": ("pairs", "rows"),
    "mixed": ("weights", "mixtures"),
}
"""Phases of the forward pass in which a layer asks for itself; with pairs go counts."""


def of_requests(
    ids: Ids,
    tables: Tables,
    grid: Grid,
    option: str = "early",
    chosen: Chosen | None = None,
) -> Traffic:
    """The bytes of one micro-batch, from what each rank asks for.

    Args:
        ids: for each rank its token ids, integers of any shape; may be empty.
        tables: rows and their sizes.
        grid: owners in an emp group; the number of ranks is a multiple of its size.
        option: "early", "routed", "mixed", or "sharded" for the ladder.
        chosen: for each rank and each layer with a table the chosen modulators [T, K]; "routed" and "sharded"
            of MoRT need them, and nothing else reads them.

    Raises:
        ConfigError: an unknown option, one that needs a router, or a number of ranks that does not fit the
            grid.
    """
    check_option(option, tables)
    if not ids or len(ids) % grid.size:
        raise ConfigError(f"ranks are {len(ids)}; accepted: a multiple of the grid's {grid.size}")
    asked = asked_by.counted(ids, tables, grid, option, chosen)
    return of_asked(asked, tables, grid, option, ranks=len(ids))


def expected(
    frequencies: Frequencies, tokens: int, tables: Tables, grid: Grid, option: str = "early", *, ranks: int
) -> Traffic:
    """The expected bytes of one micro-batch of `tokens` tokens on each of `ranks` ranks, all alike.

    Expected counts of ids come from `frequencies`. Pairs are those of a router that chooses evenly and anew
    for every token: a router that likes the same rows for the same token asks for fewer.

    Raises:
        ConfigError: as `of_requests`.
    """
    check_option(option, tables)
    if ranks < 1 or ranks % grid.size:
        raise ConfigError(f"ranks are {ranks}; accepted: a multiple of the grid's {grid.size}")
    asked = asked_by.expected(frequencies, tokens, tables, grid, option)
    return of_asked(asked, tables, grid, option, ranks=ranks)


def of_asked(asked: Asked, tables: Tables, grid: Grid, option: str, *, ranks: int) -> Traffic:
    """The table of this module's docstring, for counts of any origin."""
    part = {"early": _early, "routed": _routed, "sharded": _sharded, "mixed": _mixed}[option]
    lanes = part(asked, tables, grid)
    if ranks > grid.size:
        lanes |= _replicas(asked, tables, grid)
    return Traffic(ranks=ranks, group=grid.size, lanes=lanes)


def recomputed(once: Traffic, option: str) -> Traffic:
    """A micro-batch whose backward pass computes every layer's forward pass again: phases of their own.

    What was asked for before the first layer stays, so "early" asks for nothing again.
    """
    repeated = {f"recomputed {name}": once.lanes[name]._replace(backward=True) for name in _PER_LAYER[option]}
    if option in asked_by.PAIRED:
        counts = once.lanes["counts"]
        layers = counts.collectives - ("ids" in once.lanes)
        repeated["recomputed counts"] = Lane(
            counts.bytes // counts.collectives * layers, Way.ASK, layers, backward=True
        )
    return Traffic(once.ranks, once.group, once.lanes | repeated)


def dense_all_reduce(tables: Tables, ranks: int) -> float:
    """Bytes each rank sends, and receives, per step with replicated tables and dense float32 gradients.

    A ring moves 2 (N - 1) / N of the V E D L 4 bytes through each rank, in 2 (N - 1) messages.
    """
    return 2 * (ranks - 1) / ranks * tables.params * FLOAT


def check_option(option: str, tables: Tables) -> None:
    """Raises ConfigError where the option is unknown, or is one of a router that the tables do not have."""
    accepted = RUNGS if tables.mixes else ("early", "sharded")
    if option not in accepted:
        why = "" if option not in RUNGS else " (ReToken has no router to wait for)"
        raise ConfigError(f"exchange is {option!r}{why}; accepted: {', '.join(accepted)}")


def _ids(asked: Asked, grid: Grid, extra: int) -> dict[str, Lane]:
    """Counts of ids, and `extra` times of something else; the ids."""
    ones = np.ones((len(asked.unique), grid.size), np.int64)
    return {
        "counts": Lane(COUNT * (1 + extra) * ones, Way.ASK, 1 + extra),
        "ids": Lane(ID * grid.per_owner(asked.unique), Way.ASK),
    }


def _early(asked: Asked, tables: Tables, grid: Grid) -> dict[str, Lane]:
    held = grid.modulators_per_owner(tables.modulators)
    elements = tables.layers * grid.per_owner(asked.unique) * held * tables.width
    return _ids(asked, grid, 0) | _rows(elements, tables)


def _routed(asked: Asked, tables: Tables, grid: Grid) -> dict[str, Lane]:
    assert asked.pairs is not None
    pairs = {"pairs": Lane(ID * asked.pairs, Way.ASK, tables.layers)}
    return _ids(asked, grid, tables.layers) | pairs | _rows(asked.pairs * tables.width, tables)


def _sharded(asked: Asked, tables: Tables, grid: Grid) -> dict[str, Lane]:
    lanes = _routed(asked, tables, grid)
    del lanes["ids"]
    ones = np.ones_like(asked.pairs)
    return lanes | {"counts": Lane(COUNT * tables.layers * ones, Way.ASK, tables.layers)}


def _rows(elements: np.ndarray, tables: Tables) -> dict[str, Lane]:
    layers = tables.layers
    return {
        "rows": Lane(elements * tables.row_bytes, Way.ANSWER, layers),
        "gradients": Lane(elements * tables.gradient_bytes, Way.ASK, layers, backward=True),
    }


def _mixed(asked: Asked, tables: Tables, grid: Grid) -> dict[str, Lane]:
    layers, tokens = tables.layers, grid.per_owner(asked.tokens)
    weights = FLOAT * layers * tokens * grid.modulators_per_owner(tables.modulators)
    mixtures = FLOAT * layers * tokens * tables.width
    return _ids(asked, grid, 1) | {
        "slots": Lane(SLOT * tokens, Way.ASK),
        "weights": Lane(weights, Way.ASK, layers),
        "mixtures": Lane(mixtures, Way.ANSWER, layers),
        "gradients": Lane(mixtures, Way.ASK, layers, backward=True),
        "weight gradients": Lane(weights, Way.ANSWER, layers, backward=True),
    }


def _replicas(asked: Asked, tables: Tables, grid: Grid) -> dict[str, Lane]:
    union, layers = grid.per_owner(asked.union), tables.layers
    elements = layers * union * grid.modulators_per_owner(tables.modulators) * tables.width
    rows = elements * tables.gradient_bytes
    return {
        "replica counts": Lane(np.full_like(union, COUNT * layers), Way.REPLICA, layers, backward=True),
        "replica ids": Lane(ID * layers * union, Way.REPLICA, layers, backward=True),
        "replica gradients": Lane(rows, Way.REPLICA, layers, backward=True),
    }
