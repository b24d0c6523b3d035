"""Expected distinct ids: by hand, against draws, and against real batches."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retoken.config import MoRTConfig
from retoken.data.tokens import TokenStore
from retoken.errors import ConfigError, DataError
from retoken.nn import index_for
from retoken.plan import Frequencies, fit_zipf
from retoken.plan.measured import measure, of_lookups, of_store, with_clustering


def test_distinct_ids_of_two_coins() -> None:
    coin = Frequencies.of_counts(np.array([3, 1]))
    # Of two throws: 1 - (1/4)^2 that the first is seen, 1 - (3/4)^2 that the second is.
    np.testing.assert_allclose(coin.unique(2, 2), [15 / 16, 7 / 16])
    assert coin.unique(0).sum() == 0
    sure = Frequencies.of_counts(np.array([5, 0]), vocab_size=3)
    np.testing.assert_allclose(sure.unique(7, 3), [1, 0, 0])


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any), st.integers(1, 7), st.integers(1, 500)
)
def test_shards_partition_the_vocabulary(counts: list[int], shards: int, tokens: int) -> None:
    found = Frequencies.of_counts(np.array(counts))
    np.testing.assert_allclose(found.unique(tokens, shards).sum(), found.unique(tokens).sum())
    np.testing.assert_allclose(found.shares(shards).sum(), 1)
    by_hand = [sum(counts[shard::shards]) / sum(counts) for shard in range(shards)]
    np.testing.assert_allclose(found.shares(shards), by_hand)
    per_id = [1 - (1 - count / sum(counts)) ** tokens for count in counts]
    by_hand = [sum(per_id[shard::shards]) for shard in range(shards)]
    np.testing.assert_allclose(found.unique(tokens, shards), by_hand, atol=1e-9)


def test_expected_distinct_ids_are_the_mean_of_draws() -> None:
    found = Frequencies.zipf(1000, 1.1, 2.0)
    chance = np.random.default_rng(1)
    draws = [len(np.unique(chance.choice(1000, 700, p=found.probability))) for _ in range(200)]
    assert abs(np.mean(draws) - found.unique(700).sum()) < 5 * np.std(draws) / np.sqrt(200)
    # Half the occurrences count: as half the tokens would, up to the spread of their number.
    assert found.unique(700, chance=0.5).sum() == pytest.approx(found.unique(350).sum(), rel=1e-3)


@pytest.mark.parametrize(("exponent", "shift"), [(0.9, 0.0), (1.06, 0.9), (1.3, 30.0)])
def test_a_planted_zipf_law_is_found(exponent: float, shift: float) -> None:
    law = Frequencies.zipf(5000, exponent, shift)
    found = fit_zipf(law.probability * 1e9)
    assert found == pytest.approx((exponent, shift), rel=1e-3, abs=1e-3)
    drawn = np.random.default_rng(0).multinomial(3_000_000, law.probability)
    np.random.default_rng(1).shuffle(drawn)
    again = Frequencies.zipf(5000, *fit_zipf(drawn))
    for tokens in (100, 10_000):
        assert again.unique(tokens).sum() == pytest.approx(law.unique(tokens).sum(), rel=0.01)


def test_clustering_lies_between_the_measured_sizes() -> None:
    law = Frequencies.zipf(1000, 1.0)
    found = law.clustered(((10_000, 0.9), (100, 0.8)))
    assert found.ratio(1000) == pytest.approx(0.85)
    assert found.ratio(1) == 0.8 and found.ratio(10**9) == 0.9
    np.testing.assert_allclose(found.unique(1000, 4), 0.85 * law.unique(1000, 4))


def _store_of_repeats(folder: Path) -> TokenStore:
    """Documents that each say one word over and over."""
    import json

    from retoken.data.config import PrepareConfig
    from retoken.data.prepare import prepare

    words = [f"{a}{b}{a}{b}" for a in "bcdfghjklm" for b in "aeiou"]
    lines = [json.dumps({"text": " ".join([words[i % len(words)]] * 60)}) for i in range(300)]
    corpus = folder / "repeats.jsonl"
    corpus.write_text("\n".join(lines) + "\n")
    prepare(PrepareConfig(corpus=str(corpus), out=folder / "store", vocab_size=320, workers=1))
    return TokenStore.open(folder / "store")


def test_documents_that_repeat_themselves_hold_fewer_distinct_ids(tmp_path: Path) -> None:
    store = _store_of_repeats(tmp_path)
    found = measure(store, 2, 40, batches=10)
    assert found.tokens == 80 and found.batches == 10
    assert found.ratio < 0.5
    split = store.split("train")
    everything = split.read(0, len(split))
    windows = everything[: len(everything) // 41 * 41].reshape(-1, 41)[:, :-1]
    one = measure(store, 1, 40, batches=10**6)
    # Every window once, so the mean is that of all of them.
    assert one.batches == len(windows)
    assert one.measured == pytest.approx(np.mean([len(np.unique(window)) for window in windows]))
    corrected, measured = with_clustering(of_store(store), store, (1, 2, 10**6), 40)
    assert [each.tokens for each in measured] == [40, 80, len(windows) // 4 * 40]
    assert corrected.unique(80).sum() == pytest.approx(measured[1].measured)


def test_random_words_hold_what_independent_draws_hold(tiny_store: Path) -> None:
    store = TokenStore.open(tiny_store)
    found = measure(store, 8, 64, batches=20)
    # Sentences of words drawn at random: only the parts of a word come together.
    assert 0.9 < found.ratio < 1.05
    assert of_store(store).vocab_size == store.manifest.vocab_size


def test_rows_by_bigrams_are_counted_where_they_are_read(tiny_store: Path) -> None:
    store, vocab = TokenStore.open(tiny_store), 512
    modulator = MoRTConfig.by_token_and_bigram(3)
    index, rows = index_for(modulator, vocab), modulator.table_rows(vocab)
    found = of_lookups(store, index, rows, 40)
    split = store.split("train")
    windows = torch.as_tensor(split.read(0, len(split) // 40 * 40)).view(-1, 40)
    by_hand = torch.bincount(index(windows, None).flatten(), minlength=rows).double()
    np.testing.assert_allclose(found.probability, by_hand / by_hand.sum())
    assert found.lookups == 2 and found.shares(2).sum() == pytest.approx(2)
    corrected, measured = with_clustering(found, store, (1, 2), 40, index)
    assert corrected.unique(80).sum() == pytest.approx(measured[1].measured)
    assert 40 < measured[0].measured <= 80  # 40 tokens, as many bigrams, few of which come again


def test_counts_files(tmp_path: Path) -> None:
    np.save(tmp_path / "counts.npy", np.array([[1, 3], [9, 9]]))
    assert Frequencies.load(tmp_path / "counts.npy", 3).probability.tolist() == [0.25, 0.75, 0]
    broken = {
        "text.npy": b"id,count\n1,2\n",
        "empty.npy": b"",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "floats.npy", np.ones(4))
    np.save(tmp_path / "cube.npy", np.ones((2, 2, 2), int))
    np.save(tmp_path / "none.npy", np.zeros(0, int))
    np.save(tmp_path / "zero.npy", np.zeros(3, int))
    np.save(tmp_path / "negative.npy", np.array([2, -1]))
    np.savez(tmp_path / "archive.npz", a=np.ones(3))
    paths = [path for path in tmp_path.iterdir() if path.name != "counts.npy"]
    for path in [*paths, tmp_path / "missing.npy"]:
        with pytest.raises(DataError, match=path.name):
            Frequencies.load(path)
    with pytest.raises(DataError, match=r"shape \[2\].*up to 1"):
        Frequencies.load(tmp_path / "counts.npy", 1)
    with pytest.raises(ConfigError, match="zipf is -1"):
        Frequencies.zipf(10, -1.0)
