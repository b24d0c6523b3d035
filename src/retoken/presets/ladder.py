"""Backbones of any size by one convention, for studies that need many: ``llama-64x4``, ``moe-64x4``.

Width times layers, untied embeddings. Heads are 16 wide, from width 128 on 32. The dense ones are Llamas
whose SwiGLU is 8/3 of the width; the mixtures have a dense first layer, then 8 routed experts and a shared
one, top-2, each a third as wide, so that a token uses about what it does in the dense one of that shape.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal, cast, get_args

from retoken.errors import ConfigError
from retoken.presets.recipe import Preset, Recipe

Kind = Literal["llama", "moe"]
NAME = re.compile(r"(llama|moe)-(\d+)x(\d+)")
EXPERTS, TOP_K, SHARED = 8, 2, 1
INIT = 0.55
"""Start values have this standard deviation over the root of the width: 0.02 at width 768, GPT-2's. The
families' own 0.02 at every width leaves narrow backbones all but silent for their first hundreds of steps."""
POSITIONS = 4096
"""The longest context. Rotations have no parameters, so it costs nothing."""


def named(name: str) -> Preset | None:
    """The preset that a name of this convention means; None where it is no such name.

    Raises:
        ConfigError: The width or depth is not one the convention has.
    """
    found = NAME.fullmatch(name)
    return build(cast(Kind, found[1]), int(found[2]), int(found[3])) if found else None


def build(kind: Kind, width: int, layers: int) -> Preset:
    """The backbone of that shape, with the recipe of `cpu-xs` and a vocabulary of 4096.

    Raises:
        ConfigError: `width` is no multiple of 16 (from 128 on: of 32), or there are too few layers.
    """
    least = 1 if kind == "llama" else 2
    step = width_step(width)
    if kind not in get_args(Kind) or width < step or width % step or layers < least:
        raise ConfigError(
            f"preset is '{kind}-{width}x{layers}'; accepted: a width that is a multiple of {step}, and "
            f"layers from {least}"
        )
    backbone = _dense(width, layers) if kind == "llama" else _mixture(width, layers)
    return Preset(
        name=f"{kind}-{width}x{layers}",
        group="cpu",
        summary=f"{'dense' if kind == 'llama' else 'mixture'} {width} x {layers}",
        model_type="llama" if kind == "llama" else "glm4_moe",
        vocab_size=4096,
        backbone=backbone,
        recipe=Recipe(
            tokens=800 * 16 * 128,
            batch_size=16,
            context_length=128,
            lr=3e-3,
            min_lr_ratio=0.1,
            schedule="cosine",
            eval_tokens=65536,
        ),
    )


def width_step(width: int) -> int:
    """What a width near this one must be a multiple of: the head's width."""
    return 16 if width < 128 else 32


def ffn_width(width: int) -> int:
    """Of the dense layers' SwiGLU: 8/3 of the width, up to a multiple of 8."""
    return -(-8 * width // 24) * 8


def expert_width(width: int) -> int:
    """Of an expert: top-k and the shared one together are as wide as the dense layers'."""
    return -(-ffn_width(width) // (8 * (TOP_K + SHARED))) * 8


def compute_params(kind: Kind, width: int, layers: int) -> int:
    """N_c by arithmetic; `retoken.presets.count` counts the same on the modules."""
    attention, norms = 4 * width * width, 2 * width
    dense = attention + norms + 3 * width * ffn_width(width)
    if kind == "llama":
        return layers * dense + width
    head = width_step(width)
    experts = (TOP_K + SHARED) * 3 * width * expert_width(width) + EXPERTS * width
    return dense + (layers - 1) * (attention + norms + experts) + layers * 2 * head + width


def _common(width: int, layers: int) -> dict[str, Any]:
    heads = width // width_step(width)
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width_step(width),
        "intermediate_size": ffn_width(width),
        "max_position_embeddings": POSITIONS,
        "initializer_range": round(INIT / math.sqrt(width), 4),
        "tie_word_embeddings": False,
    }


def _dense(width: int, layers: int) -> dict[str, Any]:
    return _common(width, layers)


def _mixture(width: int, layers: int) -> dict[str, Any]:
    return {
        **_common(width, layers),
        "first_k_dense_replace": 1,
        "use_qk_norm": True,
        "moe_intermediate_size": expert_width(width),
        "n_routed_experts": EXPERTS,
        "n_shared_experts": SHARED,
        "num_experts_per_tok": TOP_K,
        "num_nextn_predict_layers": 0,
    }
