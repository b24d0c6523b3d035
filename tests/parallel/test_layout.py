"""Every row has exactly one owner, and parts put together are the whole."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retoken.errors import ConfigError
from retoken.parallel import Layout


@given(
    name=st.sampled_from(["V", "E", "VxE"]),
    ranks=st.integers(1, 9),
    vocab=st.integers(1, 40),
    per_token=st.integers(2, 7),
)
def test_parts_make_the_whole(name, ranks, vocab, per_token):
    layout = Layout.make(name, ranks, vocab, per_token)
    assert layout.ranks == ranks
    whole = torch.arange(vocab * per_token * 3).view(vocab, per_token, 3)
    put = torch.full_like(whole, -1)
    count = 0
    for rank in range(ranks):
        part = layout.take(whole, rank)
        assert part.shape == layout.local_shape(rank, whole.shape)
        layout.put(put, rank, part)
        count += part.numel()
    assert torch.equal(put, whole) and count == whole.numel()


def test_uneven_sizes():
    layout = Layout.make("E", 4, 131, 5)
    assert [len(layout.modulators(e)) for e in range(4)] == [2, 1, 1, 1]
    layout = Layout.make("V", 4, 131, 5)
    assert [layout.tokens(v) for v in range(4)] == [33, 33, 33, 32]
    assert (Layout.make("VxE", 4, 131, 5).vocab_shards, Layout.make("VxE", 2, 131, 5).vocab_shards) == (2, 2)


@pytest.mark.parametrize(
    ("name", "per_token", "said"),
    [("W", 5, "V, E, VxE"), ("E", 1, "accepted here: V"), ("VxE", 1, "here: V")],
)
def test_refusals(name, per_token, said):
    with pytest.raises(ConfigError, match=said):
        Layout.make(name, 4, 131, per_token)
