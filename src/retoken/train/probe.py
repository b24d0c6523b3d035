"""A look inside the model while it trains: scales, modulator load, and the residual stream by depth."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import retoken
from retoken.attach import decoder_layers
from retoken.train.evaluate import autocast, eval_mode


@torch.no_grad()
def probe(model: PreTrainedModel, ids: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """What the report draws, by layer.

    Args:
        model: The model, attached or plain.
        ids: [B, S] token ids, the same at every call, so that calls compare.
        dtype: As in `evaluate`.

    Returns:
        scale_mean and scale_abs_mean of s^l (Figs. 6-7); load: f_i of Eq. 21 on `ids`, MoRT only;
        hidden_std (Fig. 9): standard deviation of the residual stream, "0" before the first block, "l + 1"
        behind block l. Keys are strings, as JSON has them.
    """
    with eval_mode(model), autocast(ids.device, dtype), _residual_stream(model) as std:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    values: dict[str, Any] = {"scale_mean": {}, "scale_abs_mean": {}, "load": {}}
    if hasattr(model, "retoken"):
        values |= _modulation(model)
    return values | {"hidden_std": {str(depth): value.item() for depth, value in sorted(std.items())}}


def _modulation(model: PreTrainedModel) -> dict[str, Any]:
    modulators = retoken.modulators(model).items()
    scales = {str(layer): m.scale.float() for layer, m in modulators if hasattr(m, "scale")}
    loads = retoken.router_loads(model)
    return {
        "scale_mean": {layer: scale.mean().item() for layer, scale in scales.items()},
        "scale_abs_mean": {layer: scale.abs().mean().item() for layer, scale in scales.items()},
        "load": {str(layer): (load.count_E / load.count_E.sum()).tolist() for layer, load in loads.items()},
    }


@contextmanager
def _residual_stream(model: PreTrainedModel) -> Iterator[dict[int, Tensor]]:
    """Hooks that note the standard deviation before the first and behind every decoder layer."""
    std: dict[int, Tensor] = {}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        std[0] = (args[0] if args else kwargs["hidden_states"]).float().std()

    def behind(depth: int) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            std[depth] = (output[0] if isinstance(output, tuple) else output).float().std()

        return note

    layers = decoder_layers(model)
    handles = [layers[0].register_forward_pre_hook(before, with_kwargs=True)] if layers else []
    handles += [layer.register_forward_hook(behind(depth + 1)) for depth, layer in enumerate(layers)]
    try:
        yield std
    finally:
        for handle in handles:
            handle.remove()
