"""Who owns what, and what a batch is."""

import pytest

from retoken.config import MoRTConfig, ReTokenConfig
from retoken.errors import ConfigError
from retoken.plan import Batch, Grid, Tables, grids

MORT = Tables(vocab_size=131, width=4, layers=3, modulators=5, top_k=3, mixes=True)


def test_5_modulators_over_4_and_131_tokens_over_4() -> None:
    assert Grid(modulator_shards=4).modulators_of(5).tolist() == [2, 1, 1, 1]
    assert Grid(vocab_shards=4).tokens_of(131).tolist() == [33, 33, 33, 32]


def test_grids_of_a_layout() -> None:
    def found(emp: int, layout: str) -> list[tuple[int, int]]:
        return [(g.vocab_shards, g.modulator_shards) for g in grids(MORT, emp, layout)]

    assert found(4, "V") == [(4, 1)] and found(4, "E") == [(1, 4)] and found(4, "VxE") == [(2, 2)]
    assert found(8, "auto") == [(8, 1), (4, 2), (2, 4)]
    assert found(1, "auto") == [(1, 1)]
    assert [str(g) for g in grids(MORT, 4)] == ["V (4 x 1)", "VxE (2 x 2)", "E (1 x 4)"]
    for emp, layout in ((8, "E"), (7, "VxE"), (132, "V"), (1320, "auto")):
        with pytest.raises(ConfigError, match=rf"tables.layout is {layout} over {emp} ranks"):
            grids(MORT, emp, layout)
    with pytest.raises(ConfigError, match=r"tables.layout is 'rows'; accepted: auto, V, E, VxE"):
        grids(MORT, 4, "rows")


def test_tables_of_a_modulator() -> None:
    size = {"vocab_size": 131, "hidden_size": 4, "num_layers": 3}
    assert Tables.of(MoRTConfig(), **size) == MORT
    late = Tables.of(MoRTConfig(injection_delay=1), **size)
    assert late.layers == 2
    plain = Tables.of(ReTokenConfig(layers=(0, 2)), **size, row_bytes=2)
    assert (plain.layers, plain.modulators, plain.top_k, plain.row_bytes, plain.mixes) == (2, 1, 1, 2, False)
    for config in (MoRTConfig(), ReTokenConfig()):
        assert Tables.of(config, **size).params == config.table_params(131, 4, 3)


def test_a_batch_by_hand() -> None:
    batch = Batch(sequences=48, context_length=10, ranks=4, micro_sequences=3)
    assert (batch.share, batch.micro_batches, batch.tokens) == (12, 4, 30)
    assert (batch.rank_tokens, batch.step_tokens) == (120, 480)
    uneven = Batch(sequences=48, context_length=10, ranks=4, micro_sequences=5)
    assert (uneven.micro_batches, uneven.tokens) == (3, 50)
    whole = Batch(sequences=48, context_length=10, ranks=4)
    assert (whole.micro_batches, whole.tokens) == (1, 120)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"ranks": 0}, "ranks is 0; accepted: an integer from 1"),
        ({"ranks": 5}, "batch_size is 48 with 5 ranks; accepted: a multiple of 5"),
        ({"sequences": 0}, "batch_size is 0"),
        ({"ranks": 4, "micro_sequences": 13}, "micro_batch_size is 13; accepted: up to 12"),
        ({"micro_sequences": -1}, "micro_batch_size is -1"),
        ({"context_length": 0}, "context_length is 0"),
    ],
)
def test_a_batch_that_does_not_divide_is_refused(values: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Batch(**({"sequences": 48, "context_length": 10} | values))
