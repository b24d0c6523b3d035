"""A small model that has been trained for a step, so that every parameter has optimizer state."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import retoken
from retoken.testing import tiny_model, token_ids


@pytest.fixture
def trained() -> Callable[..., tuple[PreTrainedModel, torch.optim.Optimizer]]:
    """A tiny attached model behind a step, and its optimizer."""

    def build(
        family: str = "llama", config: Any = None, **options: Any
    ) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
        model = tiny_model(family, **options)
        retoken.attach(model, config or retoken.MoRTConfig())
        named = list(model.named_parameters())
        group = {"params": [p for _, p in named], "param_names": [name for name, _ in named]}
        optimizer = torch.optim.AdamW([group], lr=1e-2, fused=True)
        ids = token_ids()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return model, optimizer

    return build
