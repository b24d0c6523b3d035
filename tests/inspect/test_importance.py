"""Estimates: exact where modulation is infinitesimal, shrunk as one-way random effects ask for."""

import math

import pytest
import torch

from retoken.inspect.check import check, rank_correlation
from retoken.inspect.importance import Estimate, estimate, variance_ratio
from retoken.inspect.neutral import without_rows, without_scales
from retoken.testing import VOCAB


def real_cost(subject, modulators, token):
    before = subject.window_losses(subject.looked_NW).sum()
    with without_rows(modulators, torch.tensor([token])):
        return (subject.window_losses(subject.looked_NW).sum() - before).item()


@pytest.fixture(autouse=True)
def float64_losses(monkeypatch):
    """Differences of losses of nearly the same models drown in float32, which Llama's norms compute in."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


def test_first_order_is_exact_for_infinitesimal_rows(build, kind):
    subject = build(kind, family="gpt2", factor=1e-5)
    found = estimate(subject)
    tokens = subject.looked_NW[0, :4].tolist()
    for token in tokens:
        real = real_cost(subject, subject.modulators.values(), token)
        assert found.first_V[token].item() == pytest.approx(real, rel=2e-3, abs=1e-10)
        assert found.path_V[token].item() == pytest.approx(real, rel=2e-3, abs=1e-10)
    for number, module in enumerate(subject.modulators.values()):
        real = real_cost(subject, [module], tokens[0])
        assert found.first_LV[number, tokens[0]].item() == pytest.approx(real, rel=5e-3, abs=1e-10)


def test_along_the_path_all_tokens_sum_to_what_all_rows_are_worth(build, kind):
    subject = build(kind, family="gpt2", factor=0.05)
    found = estimate(subject)
    before = subject.window_losses(subject.looked_NW).sum()
    with without_scales(subject.modulators.values()):
        real = (subject.window_losses(subject.looked_NW).sum() - before).item()
    path, first = found.path_V.sum().item(), found.first_V.sum().item()
    # A router's choice jumps along the way, and a jump has no derivative.
    assert path == pytest.approx(real, rel=0.05 if "mort" in kind else 0.005)
    assert abs(path - real) < abs(first - real)


def test_tokens_that_were_not_seen_have_no_cost_and_the_model_is_left_alone(build):
    subject = build("mort")
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    found = estimate(subject)
    unseen = torch.ones(VOCAB, dtype=torch.bool)
    unseen[subject.looked_NW[:, :-1].flatten()] = False
    assert not found.path_LV[:, unseen].any() and not found.count_V[unseen].any()
    assert found.path_LV[:, ~unseen].all()
    assert all(torch.equal(before[name], value) for name, value in subject.model.state_dict().items())
    assert all(parameter.grad is None for parameter in subject.model.parameters())
    assert not any(module._forward_hooks for module in subject.modulators.values())


def planted(groups, values, between, within, seed=0):
    chance = torch.Generator().manual_seed(seed)
    mean = torch.randn(groups, 1, generator=chance, dtype=torch.float64) * math.sqrt(between)
    return mean + torch.randn(groups, values, generator=chance, dtype=torch.float64) * math.sqrt(within)


def test_the_variance_ratio_finds_what_was_planted():
    sample = planted(4000, 5, between=0.5, within=4.0)
    n = torch.full((4000,), 5.0, dtype=torch.float64)
    assert variance_ratio(n, sample.sum(1), (sample**2).sum(1)) == pytest.approx(8, rel=0.1)


def test_groups_that_do_not_differ_are_taken_for_one():
    n, ones = torch.full((7,), 3.0, dtype=torch.float64), torch.ones(7, 3, dtype=torch.float64)
    ones[:, 1], ones[:, 2] = 2, 6
    assert variance_ratio(n, ones.sum(1), (ones**2).sum(1)) == math.inf


def test_shrinking_draws_the_rarer_token_further():
    values = planted(500, 20, between=1.0, within=4.0)
    values[1, 10:], values[2] = 0, 0
    count = torch.full((500,), 20)
    count[1], count[2] = 10, 0
    found = Estimate(
        first_LV=values.sum(1)[None],
        path_LV=values.sum(1)[None],
        square_V=(values**2).sum(1),
        count_V=count,
    )
    shrunk, mean = found.shrunk_V(), values.sum() / count.sum()
    own = values.sum(1) / count.clamp_min(1)
    weight = ((shrunk - mean) / (own - mean))[:2]
    assert weight[0] == pytest.approx(20 / 24, rel=0.05) and weight[1] == pytest.approx(10 / 14, rel=0.05)
    assert shrunk[2] == pytest.approx(mean.item())


def test_checked_rows_are_really_zeroed(build, kind):
    subject = build(kind)
    found = estimate(subject)
    checked = check(subject, found, 9)
    assert len(checked.ids_R) == 9
    for token, real in zip(checked.ids_R.tolist(), checked.real_R.tolist(), strict=True):
        wanted = real_cost(subject, subject.modulators.values(), token)
        assert real == pytest.approx(wanted, rel=1e-6, abs=1e-9)
    counts = found.count_V[checked.ids_R].tolist()
    assert counts == sorted(counts, reverse=True) and counts[0] == found.count_V.max() and counts[-1] == 1


def test_rank_correlation_knows_ranks_alone():
    a = torch.tensor([1.0, 2, 3, 4])
    assert rank_correlation(a, a.exp()) == pytest.approx(1)
    assert rank_correlation(a, -(a**3)) == pytest.approx(-1)
    assert rank_correlation(a, torch.tensor([2.0, 1, 4, 3])) == pytest.approx(0.6)
    assert math.isnan(rank_correlation(a, torch.ones(4)))
