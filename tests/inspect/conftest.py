"""Tiny attached models with random windows: what is found in them can be computed the slow way."""

import copy
from collections.abc import Callable

import pytest
import torch

import retoken
from retoken.inspect import Subject
from retoken.testing import VOCAB, randomize, tiny_model, token_ids

CONFIGS = {
    "retoken": retoken.ReTokenConfig(),
    "retoken-subset": retoken.ReTokenConfig(norm="l2", layers=(0, 2)),
    "mort": retoken.MoRTConfig(num_modulators=4, top_k=2),
    "mort-delay": retoken.MoRTConfig(
        num_modulators=4, top_k=2, router_input="block_input", injection_delay=1
    ),
}


def make(
    name: str = "retoken", dtype: torch.dtype = torch.float64, family: str = "llama", factor: float = 1.0
) -> Subject:
    """A model of a kind with 5 windows to look with and 5 to measure on, the same for the same arguments."""
    model = retoken.attach(tiny_model(family, dtype=dtype), CONFIGS[name]).eval()
    randomize(model.retoken)
    with torch.no_grad():
        for module in retoken.modulators(model).values():
            module.scale.mul_(factor)
    return Subject(
        model=model,
        modulators=retoken.modulators(model),
        dtype=torch.float32,
        looked_NW=token_ids(5, 12, seed=1),
        measured_MW=token_ids(5, 12, seed=2),
        count_V=torch.arange(VOCAB).flip(0) // 3,
    )


def loss_of(model, windows: torch.Tensor) -> float:
    """Nats per token, one window at a time."""
    found = []
    with torch.no_grad():
        for window in windows:
            logits = model(input_ids=window[:-1].unsqueeze(0)).logits[0].double()
            found += [-logits[i].log_softmax(-1)[window[i + 1]].item() for i in range(len(window) - 1)]
    return sum(found) / len(found)


def changed(subject: Subject, change: Callable) -> float:
    """The measured loss of a copy of the model that `change` has been told the modulators of."""
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        change(retoken.modulators(model))
    return loss_of(model, subject.measured_MW)


@pytest.fixture
def build():
    return make


@pytest.fixture
def naive_loss():
    return loss_of


@pytest.fixture
def naive_change():
    return changed


@pytest.fixture(params=CONFIGS, ids=str)
def kind(request):
    return request.param
