"""Tiny attached models of every kind that is placed."""

import pytest
import torch

import retoken
from retoken.testing import randomize, tiny_model

MORT = {"num_modulators": 4, "top_k": 2}
CONFIGS = {
    "retoken": retoken.ReTokenConfig(),
    "retoken-subset": retoken.ReTokenConfig(norm="l2", layers=(0, 2)),
    "mort": retoken.MoRTConfig(**MORT),
    "mort-block_input-delay": retoken.MoRTConfig(router_input="block_input", injection_delay=1, **MORT),
}


def make(name="retoken", dtype=torch.float32, folded=False, seed=1):
    """An attached model, the same for the same arguments."""
    model = retoken.attach(tiny_model("llama", dtype=dtype), CONFIGS[name]).eval()
    randomize(model.retoken, seed)
    return retoken.fold(model) if folded else model


@pytest.fixture
def build():
    return make


@pytest.fixture(params=CONFIGS, ids=str)
def kind(request):
    """The name of every kind."""
    return request.param
