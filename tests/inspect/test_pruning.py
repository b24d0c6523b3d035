"""Orders, the curve, and how many rows may go: against zeroing them one after the other."""

import pytest
import torch

from retoken.inspect.importance import Estimate, estimate
from retoken.inspect.neutral import without_scales
from retoken.inspect.pruning import at_random, by_frequency, by_importance, curve, fewest, kept_mask
from retoken.testing import VOCAB


def zero_all_but(kept):
    def zero(modulators):
        for module in modulators.values():
            for token in range(VOCAB):
                if token not in kept:
                    module.table.weight[token] = 0

    return zero


def test_a_curve_is_measured_as_naively_zeroed_tables_are(build, kind, naive_change):
    subject = build(kind)
    before, order = subject.loss(), at_random(subject)
    found = curve(
        subject, {"random": order, "frequency": by_frequency(subject)}, before, (1.0, 0.5, 0.1, 0.0)
    )
    assert found.increases["random"][0] == 0
    for place, kept in ((1, 66), (2, 13)):  # of 131
        wanted = naive_change(subject, zero_all_but(order[:kept].tolist())) - before
        assert found.increases["random"][place] == pytest.approx(wanted, abs=1e-6)
    with without_scales(subject.modulators.values()):
        assert found.increases["random"][3] == pytest.approx(subject.loss() - before, abs=1e-6)
    assert found.increases["frequency"][3] == found.increases["random"][3]


def test_the_fewest_are_within_what_is_allowed_and_one_halving_less_is_not(build):
    subject = build("retoken")
    order, before = by_importance(subject, estimate(subject)), subject.loss()
    costs = curve(subject, {"o": order}, before, tuple(i / VOCAB for i in range(VOCAB + 1))).increases["o"]
    for allowed in (costs[40], max(costs) + 1, -10.0):
        kept, increase = fewest(subject, order, allowed, before)
        assert increase == pytest.approx(costs[kept], abs=1e-9)
        assert increase <= allowed or kept == VOCAB
        assert kept == 0 or costs[kept - 1] > allowed
    assert fewest(subject, order, max(costs) + 1, before)[0] == 0
    assert fewest(subject, order, -10.0, before) == (VOCAB, 0.0)


def test_importance_is_cost_times_frequency_and_never_below_that_of_the_unseen(build):
    subject = build("retoken")
    cost = torch.zeros(1, VOCAB, dtype=torch.float64)
    cost[0, 60], cost[0, 61], cost[0, 62] = 50.0, 5.0, -100.0
    count = torch.full((VOCAB,), 2)
    found = Estimate(first_LV=cost, path_LV=cost, square_V=cost[0] ** 2 / 2, count_V=count)
    order = by_importance(subject, found).tolist()
    assert order[0] == 60 and order.index(61) < order.index(62)
    never = (subject.count_V == 0).nonzero().flatten().tolist()
    assert never and sorted(order[-len(never) :]) == never
    assert sorted(order) == list(range(VOCAB))


def test_the_mask_keeps_the_first_of_the_order():
    mask = kept_mask(torch.tensor([3, 0, 2, 1]), 2)
    assert mask.tolist() == [True, False, False, True]
