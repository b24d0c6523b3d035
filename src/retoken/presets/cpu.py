"""Backbones for two CPU cores: a dense ladder, a small mixture, and the demo's.

All have untied embeddings, as the paper's S, M and L have; the dense ones are Llamas with a SwiGLU of 8/3
of the width. Vocabularies are small (a BPE trained on the corpus), so that the embeddings do not dwarf the
model.
"""

from __future__ import annotations

from typing import Any

from retoken.presets.recipe import Preset, Recipe


def _llama(*, width: int, layers: int, heads: int, ffn: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": ffn,
        "tie_word_embeddings": False,
    }


def _recipe(*, steps: int, batch_size: int, context_length: int, lr: float) -> Recipe:
    return Recipe(
        tokens=steps * batch_size * context_length,
        batch_size=batch_size,
        context_length=context_length,
        lr=lr,
        min_lr_ratio=0.1,
        schedule="cosine",
        eval_every=steps // 5,
        eval_tokens=65536,
    )


def _ladder(name: str, summary: str, vocab_size: int, backbone: dict[str, Any], recipe: Recipe) -> Preset:
    return Preset(
        name=name,
        group="cpu",
        summary=summary,
        model_type="llama",
        vocab_size=vocab_size,
        backbone=backbone,
        recipe=recipe,
    )


def demo() -> Preset:
    """`make demo`: three variants on two seeds within minutes."""
    return _ladder(
        "demo",
        "the demo: 64 x 3, minutes for six runs on two cores",
        2048,
        _llama(width=64, layers=3, heads=4, ffn=176),
        _recipe(steps=500, batch_size=16, context_length=128, lr=3e-3),
    )


def cpu_xs() -> Preset:
    """64 x 3, vocabulary 4096."""
    return _ladder(
        "cpu-xs",
        "dense ladder: 64 x 3",
        4096,
        _llama(width=64, layers=3, heads=4, ffn=176),
        _recipe(steps=800, batch_size=16, context_length=128, lr=3e-3),
    )


def cpu_s() -> Preset:
    """128 x 4, vocabulary 8192: 2.9M parameters, 1.6M tokens."""
    return _ladder(
        "cpu-s",
        "dense ladder: 128 x 4",
        8192,
        _llama(width=128, layers=4, heads=4, ffn=344),
        _recipe(steps=800, batch_size=16, context_length=128, lr=2e-3),
    )


def cpu_m() -> Preset:
    """192 x 6, vocabulary 8192."""
    return _ladder(
        "cpu-m",
        "dense ladder: 192 x 6",
        8192,
        _llama(width=192, layers=6, heads=6, ffn=512),
        _recipe(steps=1000, batch_size=16, context_length=256, lr=1.5e-3),
    )


def cpu_l() -> Preset:
    """256 x 8, vocabulary 8192."""
    return _ladder(
        "cpu-l",
        "dense ladder: 256 x 8",
        8192,
        _llama(width=256, layers=8, heads=8, ffn=688),
        _recipe(steps=1300, batch_size=16, context_length=256, lr=1e-3),
    )


def cpu_moe() -> Preset:
    """A mixture shaped like those of Table 9: one dense layer, then 8 routed + 1 shared expert, top-2."""
    return Preset(
        name="cpu-moe",
        group="cpu",
        summary="small mixture: 128 x 4, 8 routed + 1 shared expert, top-2",
        model_type="glm4_moe",
        vocab_size=4096,
        backbone={
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "first_k_dense_replace": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "use_qk_norm": True,
            "intermediate_size": 344,
            "moe_intermediate_size": 112,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "tie_word_embeddings": False,
            "num_nextn_predict_layers": 0,
        },
        recipe=_recipe(steps=800, batch_size=16, context_length=128, lr=2e-3),
        notes=("The family trains its experts without a balancing loss or bias updates of its own.",),
    )


BUILDERS = (demo, cpu_xs, cpu_s, cpu_m, cpu_l, cpu_moe)
