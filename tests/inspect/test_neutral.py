"""Neutralising is what its name says, and leaves no trace."""

import copy

import pytest
import torch

import retoken
from retoken.inspect.neutral import scales_times, without_rows, without_scales

IDS = torch.tensor([5, 17, 40, 99])


def state_of(subject):
    return {name: value.clone() for name, value in subject.model.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_loss_is_the_naive_one(build, kind, naive_loss):
    subject = build(kind, torch.float32)
    assert subject.loss() == pytest.approx(naive_loss(subject.model, subject.measured_MW), rel=1e-5)


def test_without_all_scales_the_model_is_its_backbone(build, kind, naive_loss):
    subject = build(kind)
    backbone = retoken.detach(copy.deepcopy(subject.model))
    before = state_of(subject)
    with without_scales(subject.modulators.values()):
        assert subject.loss() == pytest.approx(naive_loss(backbone, subject.measured_MW), rel=1e-6)
    assert same(before, state_of(subject))


def test_without_a_layer_its_scale_is_zero(build, kind, naive_change):
    subject, last = build(kind), max(build(kind).modulators)
    wanted = naive_change(subject, lambda modulators: modulators[last].scale.zero_())
    with without_scales([subject.modulators[last]]):
        assert subject.loss() == pytest.approx(wanted, rel=1e-6)


def test_without_rows_they_are_zero_in_every_layer(build, kind, naive_change):
    def zero(modulators):
        for module in modulators.values():
            for token in IDS.tolist():
                module.table.weight[token] = 0

    subject = build(kind)
    before = state_of(subject)
    with without_rows(subject.modulators.values(), IDS):
        assert subject.loss() == pytest.approx(naive_change(subject, zero), rel=1e-6)
    assert same(before, state_of(subject))


@pytest.mark.parametrize("change", ["scales", "rows", "times"])
def test_what_fails_meanwhile_leaves_the_model_as_it_was(build, change):
    subject = build("mort")
    before, every = state_of(subject), subject.modulators.values()
    contexts = {
        "scales": lambda: without_scales(every),
        "rows": lambda: without_rows(every, IDS),
        "times": lambda: scales_times(every, 3.7),
    }
    with pytest.raises(KeyError), contexts[change]():
        assert not same(before, state_of(subject))
        raise KeyError
    assert same(before, state_of(subject))
