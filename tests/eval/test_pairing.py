"""Paired differences: their sums, and intervals that redraw documents rather than tokens."""

import numpy as np
import pytest

from retoken.eval.pairing import LEAST_UNITS, differences


def drawn(units: int, groups: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nats of two checkpoints, and tokens, of documents of unequal length."""
    chance = np.random.default_rng(5)
    count = chance.integers(1, 40, size=(units, groups)).astype(float)
    theirs = 5 * count + chance.normal(size=count.shape) * count
    return theirs - count * chance.normal(0.3, 0.2, size=count.shape), theirs, count


def test_differences_are_those_of_the_sums() -> None:
    ours, theirs, count = drawn(37)
    found = differences(ours, theirs, count)
    for group, each in enumerate(found):
        assert each is not None and each.low is not None and each.high is not None
        mean = ours[:, group].sum() / count[:, group].sum() - theirs[:, group].sum() / count[:, group].sum()
        assert each.difference == pytest.approx(mean, rel=1e-12)
        assert each.low < mean < each.high
        assert each.val_loss == pytest.approx(theirs[:, group].sum() / count[:, group].sum(), rel=1e-12)
    assert sum(each.share for each in found if each) == pytest.approx(1)


def test_the_interval_is_that_of_a_ratio_of_means() -> None:
    """By the delta method: standard error of sum(d) / sum(n) is that of d - mean n over sum(n)."""
    ours, theirs, count = drawn(400, 1)
    (found,) = differences(ours, theirs, count)
    assert found is not None and found.low is not None and found.high is not None
    change = ours - theirs
    error = np.sqrt(((change - found.difference * count) ** 2).sum()) / count.sum()
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.08)


def test_tokens_of_one_document_count_as_one_draw() -> None:
    chance = np.random.default_rng(0)
    by_document = chance.normal(size=(100, 1))
    apart = np.repeat(by_document, 25, axis=0)  # 25 tokens a document, all alike
    together = 25 * by_document
    (wide,) = differences(together, 0 * together, np.full((100, 1), 25.0))
    (narrow,) = differences(apart, 0 * apart, np.ones((2500, 1)))
    assert wide and narrow and None not in (wide.low, wide.high, narrow.low, narrow.high)
    assert wide.difference == pytest.approx(narrow.difference)
    assert (wide.high - wide.low) / (narrow.high - narrow.low) == pytest.approx(5, rel=0.1)  # pyright: ignore


def test_a_seed_gives_the_same_interval_and_few_units_give_none() -> None:
    parts = drawn(LEAST_UNITS)
    assert differences(*parts) == differences(*parts)
    assert differences(*parts) != differences(*parts, seed=1)
    few = differences(*(each[1:] for each in parts))
    assert all(each and each.low is None and each.high is None for each in few)


def test_a_group_without_tokens_has_no_difference() -> None:
    ours, theirs, count = drawn(20, 3)
    for each in (ours, theirs, count):
        each[:, 1] = 0
    found = differences(ours, theirs, count)
    assert found[1] is None and found[0] is not None and found[2] is not None


def test_a_group_in_few_documents_is_given_no_interval() -> None:
    ours, theirs, count = drawn(200, 2)
    for each in (ours, theirs, count):
        each[LEAST_UNITS:, 1] = 0
    _, rare = differences(ours, theirs, count)
    assert rare is not None and rare.low is not None, "10 of 200 documents are enough"
    for each in (ours, theirs, count):
        each[LEAST_UNITS - 1 :, 1] = 0
    _, rare = differences(ours, theirs, count)
    assert rare is not None and rare.low is None
