"""Uninitialised memory is NaN in these tests: an op that forgets to write an element shows it."""

import pytest
import torch


def _poisoned(make):
    def empty(*args, **kwargs):
        made = make(*args, **kwargs)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    return empty


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poisoned(getattr(owner, name)))
