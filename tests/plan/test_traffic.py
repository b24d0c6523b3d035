"""Bytes of the exchange, against a simulation that builds every message as an array and counts its bytes."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retoken.errors import ConfigError
from retoken.plan import Frequencies, Grid, Tables, traffic

LINK = tuple[int, int]


@dataclass
class Wire:
    """Every message that was sent, by phase and link."""

    size: dict[str, Counter[LINK]] = field(default_factory=dict)
    count: dict[str, Counter[int]] = field(default_factory=dict)

    def send(self, phase: str, source: int, target: int, message: np.ndarray) -> None:
        self.size.setdefault(phase, Counter())[source, target] += message.nbytes
        if source != target:
            self.count.setdefault(phase, Counter())[source] += 1


@dataclass
class Ranks:
    """Ranks with tables of their own, exchanging as App. B says; plain loops."""

    tables: Tables
    grid: Grid
    ids: list[list[int]]
    chosen: list[list[list[list[int]]]]
    wire: Wire = field(default_factory=Wire)

    def owners(self, rank: int, v: int) -> list[tuple[int, list[int]]]:
        """The ranks that own tokens of shard v for this rank, with the modulators each holds."""
        start = rank // self.grid.size * self.grid.size
        parts = np.array_split(np.arange(self.tables.modulators), self.grid.modulator_shards)
        first = start + v * self.grid.modulator_shards
        return [(first + e, part.tolist()) for e, part in enumerate(parts)]

    def everyone(self, rank: int) -> list[int]:
        start = rank // self.grid.size * self.grid.size
        return list(range(start, start + self.grid.size))

    def row(self, count: int, dtype: type) -> np.ndarray:
        return np.zeros((count, self.tables.width), dtype)

    @property
    def row_dtype(self) -> type:
        return {2: np.float16, 4: np.float32}[self.tables.row_bytes]

    def ask_ids(self) -> None:
        for rank, ids in enumerate(self.ids):
            for peer in self.everyone(rank):
                self.wire.send("counts", rank, peer, np.zeros(1, np.int64))
            for v in range(self.grid.vocab_shards):
                wanted = sorted({x for x in ids if x % self.grid.vocab_shards == v})
                for owner, _ in self.owners(rank, v):
                    self.wire.send("ids", rank, owner, np.array(wanted, np.int64))

    def early(self) -> None:
        self.ask_ids()
        for _ in range(self.tables.layers):
            for rank, ids in enumerate(self.ids):
                for v in range(self.grid.vocab_shards):
                    wanted = {x for x in ids if x % self.grid.vocab_shards == v}
                    for owner, held in self.owners(rank, v):
                        rows = len(wanted) * len(held)
                        self.wire.send("rows", owner, rank, self.row(rows, self.row_dtype))
                        self.wire.send("gradients", rank, owner, self.row(rows, np.float32))

    def routed(self, *, unique: bool = True) -> None:
        if unique:
            self.ask_ids()
        for layer in range(self.tables.layers):
            for rank, ids in enumerate(self.ids):
                pairs = [(x, i) for x, own in zip(ids, self.chosen[rank][layer], strict=True) for i in own]
                for v in range(self.grid.vocab_shards):
                    for owner, held in self.owners(rank, v):
                        mine = [p for p in pairs if p[0] % self.grid.vocab_shards == v and p[1] in held]
                        mine = sorted(set(mine)) if unique else mine
                        self.wire.send("counts", rank, owner, np.zeros(1, np.int64))
                        self.wire.send("pairs", rank, owner, np.zeros(len(mine), np.int64))
                        self.wire.send("rows", owner, rank, self.row(len(mine), self.row_dtype))
                        self.wire.send("gradients", rank, owner, self.row(len(mine), np.float32))

    def sharded(self) -> None:
        self.routed(unique=False)

    def mixed(self) -> None:
        self.ask_ids()
        for rank, ids in enumerate(self.ids):
            for v in range(self.grid.vocab_shards):
                tokens = [x for x in ids if x % self.grid.vocab_shards == v]
                for owner, held in self.owners(rank, v):
                    self.wire.send("counts", rank, owner, np.zeros(1, np.int64))
                    self.wire.send("slots", rank, owner, np.zeros(len(tokens), np.int32))
                    for _ in range(self.tables.layers):
                        weights = np.zeros((len(tokens), len(held)), np.float32)
                        mixtures = self.row(len(tokens), np.float32)
                        self.wire.send("weights", rank, owner, weights)
                        self.wire.send("mixtures", owner, rank, mixtures)
                        self.wire.send("gradients", rank, owner, mixtures)
                        self.wire.send("weight gradients", owner, rank, weights)

    def replicas(self) -> None:
        size, ranks = self.grid.size, len(self.ids)
        for source in range(ranks):
            v = source % size // self.grid.modulator_shards
            asked = {x for peer in self.everyone(source) for x in self.ids[peer]}
            touched = {x for x in asked if x % self.grid.vocab_shards == v}
            held = next(part for owner, part in self.owners(source, v) if owner == source)
            for target in range(source % size, ranks, size):
                for _ in range(self.tables.layers):
                    self.wire.send("replica counts", source, target, np.zeros(1, np.int64))
                    self.wire.send("replica ids", source, target, np.zeros(len(touched), np.int64))
                    rows = self.row(len(touched) * len(held), np.float32)
                    self.wire.send("replica gradients", source, target, rows)


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Ranks, str]:
    """Small exchanges: uneven shards, replicas, empty requests, all on one owner, both kinds of table."""
    mixes = draw(st.booleans())
    modulators = draw(st.integers(1, 5)) if mixes else 1
    top_k = draw(st.integers(1, modulators))
    tables = Tables(
        vocab_size=draw(st.integers(1, 13)),
        width=draw(st.integers(1, 3)),
        layers=draw(st.integers(1, 2)),
        modulators=modulators,
        top_k=top_k,
        row_bytes=draw(st.sampled_from((2, 4))),
        mixes=mixes,
    )
    grid = Grid(vocab_shards=draw(st.integers(1, 3)), modulator_shards=draw(st.integers(1, modulators)))
    ranks = grid.size * draw(st.integers(1, 3))
    shape = st.lists(st.integers(0, tables.vocab_size - 1), max_size=6)
    ids = [draw(shape) for _ in range(ranks)]
    subset = st.permutations(range(modulators)).map(lambda order: list(order[:top_k]))
    chosen = [[[draw(subset) for _ in own] for _ in range(tables.layers)] for own in ids]
    option = draw(st.sampled_from(traffic.RUNGS if mixes else ("early", "sharded")))
    return Ranks(tables, grid, ids, chosen), option


@given(exchanges())
def test_bytes_and_messages_are_those_of_an_exchange_of_arrays(drawn: tuple[Ranks, str]) -> None:
    ranks, option = drawn
    getattr(ranks, option)()
    if len(ranks.ids) > ranks.grid.size:
        ranks.replicas()
    wire, count = ranks.wire, len(ranks.ids)
    choices = [
        [np.array(layer, np.int64).reshape(-1, ranks.tables.top_k) for layer in own] for own in ranks.chosen
    ]
    ids = [np.array(own, np.int64) for own in ranks.ids]
    found = traffic.of_requests(ids, ranks.tables, ranks.grid, option, choices)
    assert set(found.lanes) == set(wire.size)
    for phase, links in wire.size.items():
        wanted = np.zeros((count, count), np.int64)
        for link, size in links.items():
            wanted[link] = size
        matrix = found.matrix(phase)
        np.testing.assert_array_equal(matrix, wanted, err_msg=phase)
        flow = found.flow(phase)
        own = np.diagonal(wanted)
        np.testing.assert_array_equal(flow.local, own)
        np.testing.assert_array_equal(flow.sent, wanted.sum(1) - own)
        np.testing.assert_array_equal(flow.received, wanted.sum(0) - own)
        messages = wire.count.get(phase, Counter())
        assert all(messages[rank] == found.messages(phase) for rank in range(count)), phase


TABLES = Tables(vocab_size=131, width=3, layers=2, modulators=5, top_k=3, mixes=True)
GRIDS = [Grid(vocab_shards=4), Grid(modulator_shards=4), Grid(vocab_shards=2, modulator_shards=2)]


@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("option", traffic.RUNGS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_expected_bytes_are_the_mean_of_random_batches(grid: Grid, option: str, ranks: int) -> None:
    frequencies = Frequencies.zipf(131, 1.0)
    chance = np.random.default_rng(0)
    draws, tokens = 60, 50

    def batch() -> list[np.ndarray]:
        return [chance.choice(131, tokens, p=frequencies.probability) for _ in range(ranks)]

    def choice() -> np.ndarray:
        return np.argsort(chance.random((tokens, 5)), axis=1)[:, :3]

    found = [
        traffic.of_requests(batch(), TABLES, grid, option, [[choice(), choice()] for _ in range(ranks)])
        for _ in range(draws)
    ]
    wanted = traffic.expected(frequencies, tokens, TABLES, grid, option, ranks=ranks)
    assert wanted.messages() == found[0].messages()
    for phase in wanted.lanes:
        expected = wanted.flow(phase)
        for name in ("sent", "received", "local"):
            real = np.stack([getattr(each.flow(phase), name).reshape(-1, grid.size) for each in found])
            samples = real.reshape(-1, grid.size)
            # Ranks of one draw share replicas' requests: 5 standard errors of the independent draws alone.
            error = 5 * samples.std(0) / np.sqrt(draws)
            mean = samples.mean(0)
            assert np.all(abs(mean - getattr(expected, name)) <= error + 1e-9 * mean + 1e-9), (phase, name)


def test_a_4_rank_exchange_by_hand() -> None:
    tables = Tables(vocab_size=8, width=10, layers=1, modulators=2, top_k=1, row_bytes=2, mixes=True)
    ids = [np.array([0, 0, 1]), np.array([2]), np.array([], np.int64), np.array([3, 5])]
    found = traffic.of_requests(ids, tables, Grid(vocab_shards=2, modulator_shards=2), "early")
    # Rank 0 wants id 0 of ranks 0 and 1, and id 1 of ranks 2 and 3; each holds one modulator.
    np.testing.assert_array_equal(found.matrix("ids")[0], [8, 8, 8, 8])
    np.testing.assert_array_equal(found.matrix("rows")[:, 0], [20, 20, 20, 20])
    np.testing.assert_array_equal(found.matrix("gradients")[3], [0, 0, 80, 80])
    np.testing.assert_array_equal(found.flow("rows").sent, [20, 20, 60, 20])
    np.testing.assert_array_equal(found.flow("rows").received, [60, 20, 0, 40])
    assert found.flow("rows").busiest == 60
    assert found.messages() == 4 * 3


def test_micro_batches_add_up() -> None:
    grid = GRIDS[2]
    one = traffic.of_requests([np.arange(r, 20) for r in range(4)], TABLES, grid, "early")
    two = traffic.of_requests([np.arange(5 * r, 40) for r in range(4)], TABLES, grid, "early")
    both = one + two
    for phase in one.lanes:
        np.testing.assert_array_equal(both.matrix(phase), one.matrix(phase) + two.matrix(phase))
    assert both.messages() == one.messages() + two.messages()
    again = one.times(forward=2, backward=1)
    np.testing.assert_array_equal(again.matrix("rows"), 2 * one.matrix("rows"))
    np.testing.assert_array_equal(again.matrix("gradients"), one.matrix("gradients"))
    assert again.messages("rows") == 2 * one.messages("rows")


def test_a_dense_all_reduce_by_hand() -> None:
    # A ring of 4 moves 2 * 3/4 of 131 * 30 * 4 bytes through each rank.
    assert traffic.dense_all_reduce(TABLES, 4) == 1.5 * 131 * 30 * 4
    assert traffic.dense_all_reduce(TABLES, 1) == 0


def test_what_does_not_fit_is_refused() -> None:
    plain = Tables(vocab_size=131, width=3, layers=2)
    with pytest.raises(ConfigError, match="ranks are 3; accepted: a multiple of the grid's 4"):
        traffic.of_requests([np.arange(3)] * 3, TABLES, GRIDS[0])
    with pytest.raises(ConfigError, match=r"'mixed'.*no router"):
        traffic.of_requests([np.arange(3)] * 4, plain, GRIDS[0], "mixed")
    with pytest.raises(ConfigError, match="'erly'; accepted: early, routed, mixed, sharded"):
        traffic.of_requests([np.arange(3)] * 4, TABLES, GRIDS[0], "erly")
    with pytest.raises(ConfigError, match="needs what the routers chose"):
        traffic.of_requests([np.arange(3)] * 4, TABLES, GRIDS[0], "routed")
    with pytest.raises(ConfigError, match="choices of 1 layers; accepted: of 2"):
        traffic.of_requests([np.arange(3)] * 4, TABLES, GRIDS[0], "routed", [[np.zeros((3, 1), int)]] * 4)
