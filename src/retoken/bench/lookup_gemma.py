"""Gemma 3n's per-layer embeddings (PLE) by transformers' own modules, beside one layer of ours.

Gemma 3n looks up a token's rows of all L layers at once, L * 256 numbers, and each layer gates its 256 by the
state: Linear(D, 256), GELU, times the row, Linear(256, D), RMSNorm, added to the state. Timed is that whole
way, over L: the lookup as `get_per_layer_inputs` does it, then every layer's use with weights of its own, as
`Gemma3nTextDecoderLayer.forward` ends. The second contender adds `project_per_layer_inputs`, by which the
rows are mixed with a projection of the token's embedding. AltUp's other streams are left out: one state.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from retoken.bench.lookup_cases import in_a_pass
from retoken.bench.lookup_room import BLOCK, DEPTH, EPS, Contender, Setting, States, Table, drawn
from retoken.ops import fused, naive
from retoken.ops.fused import Near
from retoken.ops.quantize import STORED

LAYERS, PLE = 8, 256
"""L, and Gemma 3n's numbers a token and layer."""


def model(setting: Setting, layers: int = LAYERS) -> Any:
    """A Gemma3nTextModel as wide as ours, its per-layer table with as many tokens; attention is tiny."""
    from transformers.models.gemma3n import Gemma3nTextConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextModel

    config = Gemma3nTextConfig(
        vocab_size=8,
        vocab_size_per_layer_input=setting.vocab_size,
        hidden_size=setting.width,
        hidden_size_per_layer_input=PLE,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        num_kv_shared_layers=0,
        layer_types=["full_attention"] * layers,
        activation_sparsity_pattern=[0.0] * layers,
        laurel_rank=1,
        pad_token_id=0,
    )
    found: Any = Gemma3nTextModel(config)
    return found.to(STORED[setting.rows]).requires_grad_(False).eval()


def used(layer: Any, state: Tensor, row: Tensor) -> Tensor:
    """The state [B, T, D] after a layer has used its rows [B, T, 256]: the last lines of its forward."""
    found = layer.act_fn(layer.per_layer_input_gate(state))
    found = layer.per_layer_projection(torch.multiply(found, row))
    return state + layer.post_per_layer_input_norm(found)


def by_hand(gemma: Any, state: Tensor, ids: Tensor) -> Tensor:
    """The same for all layers in float64, [T, D], from the weights."""
    wide = {name: value.double() for name, value in gemma.layers.named_parameters() if "per_layer" in name}
    rows = gemma.embed_tokens_per_layer.weight[ids].double() * PLE**0.5
    state = state.double()
    for number, row in enumerate(rows.split(PLE, -1)):
        own = f"{number}."
        gate = torch.nn.functional.gelu(
            state @ wide[f"{own}per_layer_input_gate.weight"].T, approximate="tanh"
        )
        found = (gate * row) @ wide[f"{own}per_layer_projection.weight"].T
        found = found * torch.rsqrt(found.square().mean(-1, keepdim=True) + gemma.config.rms_norm_eps)
        state = state + found * wide[f"{own}post_per_layer_input_norm.weight"]
    return state


def contenders(table: Table, states: States, gemma: Any) -> list[Contender]:
    """One layer of ReToken (E = 1) or MoRT with its router, fused, and Gemma's way."""
    setting, embedded = table.setting, states.increment_TD.unsqueeze(0)
    layers = len(gemma.layers)

    def lookup(ids: Tensor, projected: bool) -> Tensor:
        found = gemma.get_per_layer_inputs(ids.unsqueeze(0))
        if projected:
            found = gemma.project_per_layer_inputs(embedded, found)
        state = states.hidden_TD.unsqueeze(0)
        for number, layer in enumerate(gemma.layers):
            state = used(layer, state, found[:, :, number, :])
        return state[0]

    size = PLE * STORED[setting.rows].itemsize
    return [
        _ours(table, states),
        Contender(
            name="Gemma 3n PLE",
            call=lambda ids: lookup(ids, False),
            does="ple",
            layers=layers,
            token_bytes=size,
        ),
        Contender(
            name="Gemma 3n PLE, with its projection",
            call=lambda ids: lookup(ids, True),
            does="unchecked",
            layers=layers,
            token_bytes=size,
        ),
    ]


def _ours(table: Table, states: States) -> Contender:
    m, h, s, r = states.increment_TD, states.hidden_TD, states.scale_D, states.router_ED
    top_k = table.setting.top_k

    def gate(near: Near) -> Any:
        return functools.partial(fused.Gate(near, s, states.gain, EPS), m)

    def routed(near: Near) -> Any:
        choose, mix = fused.Route(r, top_k), fused.Mix(near, s, states.mixed_gain, EPS)
        return lambda room: mix(m, choose(h, room), room)

    return in_a_pass(table, gate if table.setting.experts == 1 else routed)


def wanted(table: Table, states: States, gemma: Any) -> dict[str, Any]:
    """What they must give; ours by the paper's equations."""
    m, h, s, r = (
        x.double() for x in (states.increment_TD, states.hidden_TD, states.scale_D, states.router_ED)
    )

    def ours(ids: Tensor) -> Tensor:
        rows, at = table.wide(ids), torch.arange(len(ids))
        if table.setting.experts == 1:
            return naive.retoken_increment(m, naive.retoken_gate(rows, s, at, "rms", EPS))
        G, w = naive.mort_weights(naive.mort_logits(h, r.T), table.setting.top_k)
        return m + naive.mort_residual(naive.mort_mix(rows, at, G, w), s, DEPTH, "rms", EPS)

    return {"whole": ours, "ple": lambda ids: by_hand(gemma, states.hidden_TD, ids)}


def fill(gemma: Any) -> None:
    """Numbers of a trained model's size: the drawn per-layer table repeated, as `Table` does."""
    weight = gemma.embed_tokens_per_layer.weight
    block = drawn(min(BLOCK, len(weight)), weight.shape[1], dtype=weight.dtype, seed=7) / PLE**0.5
    for start in range(0, len(weight), len(block)):
        weight[start : start + len(block)] = block[: len(weight) - start]
