"""Each window once in an epoch, none on two ranks, the same order for any world size, exact resume."""

import json
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retoken.data.manifest import ShardInfo, SplitInfo
from retoken.data.shards import TokenSplit
from retoken.data.windows import WindowReader, bytes_of, eval_starts, eval_windows
from retoken.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def split_of(tmp_path_factory):
    """A split whose token at place i is i, in shards of the given sizes."""

    def build(sizes: tuple[int, ...]) -> TokenSplit:
        folder = tmp_path_factory.mktemp("split")
        shards, start = [], 0
        for index, size in enumerate(sizes):
            name, offsets = f"train-{index:05d}.bin", f"train-{index:05d}.offsets.npy"
            np.arange(start, start + size, dtype="<u2").tofile(folder / name)
            np.save(folder / offsets, np.array([0, size]))
            digests = {"sha256": "", "offsets_sha256": ""}
            shards.append(ShardInfo(file=name, tokens=size, documents=1, offsets_file=offsets, **digests))
            start += size
        info = SplitInfo(tokens=start, documents=len(sizes), bytes=start, shards=tuple(shards))
        return TokenSplit(folder, "train", info, "uint16")

    return build


@pytest.fixture(scope="module")
def split(split_of) -> TokenSplit:
    return split_of((100, 1, 57, 843))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_an_epoch_holds_every_window_once_over_all_ranks(split, data):
    window = data.draw(st.integers(1, 120))
    world = data.draw(st.integers(1, 4))
    batch = data.draw(st.integers(1, 5))
    seed = data.draw(st.integers(0, 2**31))
    common = {"window": window, "batch_size": batch, "seed": seed, "world_size": world}
    readers = [WindowReader(split, rank=rank, **common) for rank in range(world)]
    count = len(split) // window
    rounds = -(-2 * count // (batch * world))
    row = list(chain.from_iterable(reader.next_indices() for _ in range(rounds) for reader in readers))
    for epoch in range(2):
        assert sorted(row[epoch * count : (epoch + 1) * count]) == list(range(count))


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_resume_is_exact_for_any_world_size(split, data):
    window = data.draw(st.integers(1, 60))
    batch = data.draw(st.integers(1, 3))
    before, after = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 20))
    seed = data.draw(st.integers(0, 1000))
    one = WindowReader(split, window=window, batch_size=4 * batch, seed=seed)
    for _ in range(before):
        one.next_batch()
    state = json.loads(json.dumps(one.state_dict()))
    world = data.draw(st.sampled_from([1, 2, 4]))
    ranks = [
        WindowReader(
            split, window=window, batch_size=4 * batch // world, seed=seed, rank=rank, world_size=world
        )
        for rank in range(world)
    ]
    for reader in ranks:
        reader.load_state_dict(state)
    for _ in range(after):
        assert torch.equal(one.next_batch(), torch.cat([reader.next_batch() for reader in ranks]))
    assert all(reader.state_dict() == one.state_dict() for reader in ranks)


def test_windows_hold_the_tokens_of_their_place_across_shards(split):
    reader = WindowReader(split, window=64, batch_size=3, seed=5)
    shadow = WindowReader(split, window=64, batch_size=3, seed=5)
    for _ in range(10):
        batch, places = reader.next_batch(), shadow.next_indices()
        assert batch.dtype == torch.int64
        assert batch.shape == (3, 64)
        for row, place in zip(batch, places, strict=True):
            assert row.tolist() == list(range(64 * place, 64 * place + 64))


def test_epochs_and_seeds_differ(split):
    readers = [WindowReader(split, window=10, batch_size=100, seed=seed) for seed in (0, 1)]
    first, second = [[reader.next_indices() for _ in range(2)] for reader in readers]
    assert len({tuple(order) for order in (*first, *second)}) == 4


def test_iterating_is_next_batch(split):
    readers = [WindowReader(split, window=10, batch_size=2, seed=0) for _ in range(2)]
    for batch, _ in zip(readers[0], range(4), strict=False):
        assert torch.equal(batch, readers[1].next_batch())


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"position": "x", "windows": 100, "window": 10, "seed": 0},
        {"position": 0, "windows": 100, "window": 10, "seed": 1},
        {"position": 0, "windows": 100, "window": 11, "seed": 0},
        {"position": 0, "windows": 99, "window": 10, "seed": 0},
        {"position": -1, "windows": 100, "window": 10, "seed": 0},
    ],
)
def test_a_foreign_state_is_refused(split, state):
    reader = WindowReader(split, window=10, batch_size=1, seed=0)
    with pytest.raises(DataError, match="data position"):
        reader.load_state_dict(state)


@pytest.mark.parametrize(
    "wrong", [{"window": 0}, {"batch_size": 0}, {"rank": 2}, {"rank": -1}, {"world_size": 0}]
)
def test_impossible_sizes_are_refused(split, wrong):
    with pytest.raises(ConfigError, match="accepted: positive sizes"):
        WindowReader(split, **{"window": 10, "batch_size": 1, "seed": 0, "rank": 0, "world_size": 2, **wrong})


def test_a_split_shorter_than_a_window_is_refused(split):
    with pytest.raises(DataError, match="has 1001 tokens; accepted: at least one window of 1002"):
        WindowReader(split, window=1002, batch_size=1, seed=0)
    with pytest.raises(DataError, match="at least one window of 1002"):
        next(eval_windows(split, 1002))


@pytest.mark.parametrize("max_tokens", [0, 1, 30, 100, 333, 1001, 5000])
def test_evaluation_windows_are_in_order_apart_and_spread(split, max_tokens):
    batches = list(eval_windows(split, 30, max_tokens, batch_size=4))
    starts = torch.cat(batches)[:, 0].tolist()
    expected = 33 if max_tokens in (0, 1001, 5000) else max(1, max_tokens // 30)
    assert len(starts) == expected
    assert all(later - earlier >= 30 for earlier, later in pairwise(starts))
    assert all(start % 30 == 0 for start in starts)
    assert eval_starts(split, 30, max_tokens).tolist() == starts
    gaps = np.diff([*starts, 990])
    assert gaps.max() - gaps.min() <= 30, "spread evenly"
    assert all(len(batch) == 4 for batch in batches[:-1])


def test_bytes_are_those_of_the_predicted_tokens():
    sizes = torch.tensor([0, 1, 10, 100])
    windows = torch.tensor([[3, 1, 2], [2, 0, 3]])
    assert bytes_of(windows, sizes) == 1 + 10 + 0 + 100


def test_reading_outside_the_split_is_an_error(split):
    for start, length in ((-1, 2), (1000, 2), (0, 1002)):
        with pytest.raises(IndexError):
            split.read(start, length)


def test_document_offsets_run_over_shards(split):
    assert split.document_offsets().tolist() == [0, 100, 101, 158, 1001]
