"""The paper's backbones and recipes (Tables 8 and 9), and JTok's 17B-A2B.

Read the same way in every preset here:

- AdamW's betas are printed as (0.95, 0.9). A first moment that forgets more slowly than the second is not
  a setting anyone uses, and (0.9, 0.95) is the common one: read as beta1 = 0.9, beta2 = 0.95.
- Batch sizes are sequences: 4096 x 1024 and 512 x 8192 are both 4.2M tokens a step; as tokens, 4096 would
  make 24 million steps of the 100B-token runs.
- "WS" is warm-up and stable: its decay ratio is 0, so the minimum of 0 printed for XL is never reached.
"""

from __future__ import annotations

from typing import Any

from retoken.presets.recipe import Preset, Recipe

GPT2_VOCAB = 50304
"""GPT-2's 50257 ids, padded to a multiple of 128: with it S, M and L come out at their published sizes."""
QWEN2_VOCAB = 152064
"""Qwen2's ids, padded as in its larger checkpoints (the 1.5B has 151936 rows): the published table sizes."""

_BILLION = 10**9
_FAMILY_NOTE = (
    "The paper says 'Qwen-style' and cites Qwen3: family qwen3 (SwiGLU, RMSNorm, q/k norm, no biases) is our "
    "reading."
)
_READINGS = (
    "AdamW betas, printed as (0.95, 0.9), are read as beta1 0.9, beta2 0.95.",
    "The batch size is read as sequences.",
)


def _dense(*, width: int, layers: int, heads: int, ffn: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": width // heads,
        "intermediate_size": ffn,
        "tie_word_embeddings": False,
    }


def _dense_recipe(lr: float) -> Recipe:
    return Recipe(
        tokens=100 * _BILLION,
        batch_size=4096,
        context_length=1024,
        lr=lr,
        min_lr_ratio=0.1,
        schedule="cosine",
    )


def _dense_preset(size: str, published: str, backbone: dict[str, Any], lr: float) -> Preset:
    return Preset(
        name=f"dense-{size.lower()}",
        group="paper",
        summary=f"Dense-{size}, {published} (Table 8)",
        model_type="qwen3",
        vocab_size=GPT2_VOCAB,
        backbone=backbone,
        recipe=_dense_recipe(lr),
        notes=(
            *_READINGS,
            _FAMILY_NOTE,
            "Untied embeddings and a vocabulary padded to 50304 are ours; they give the published size.",
        ),
    )


def dense_s() -> Preset:
    """190M parameters (Table 8, small)."""
    return _dense_preset("S", "190M", _dense(width=768, layers=12, heads=12, ffn=3072), 1e-3)


def dense_m() -> Preset:
    """0.5B parameters (Table 8, medium)."""
    return _dense_preset("M", "0.5B", _dense(width=1024, layers=24, heads=16, ffn=4096), 8e-4)


def dense_l() -> Preset:
    """1B parameters (Table 8, large)."""
    return _dense_preset("L", "1B", _dense(width=1280, layers=36, heads=20, ffn=5120), 6e-4)


def dense_xl() -> Preset:
    """1.5B parameters, the shape of Qwen2.5-1.5B (Table 8, XL)."""
    return Preset(
        name="dense-xl",
        group="paper",
        summary="Dense-XL, 1.5B, the shape of Qwen2.5-1.5B (Table 8)",
        model_type="qwen2",
        vocab_size=QWEN2_VOCAB,
        backbone={
            "hidden_size": 1536,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "intermediate_size": 8960,
            "tie_word_embeddings": True,
        },
        recipe=Recipe(
            tokens=330 * _BILLION,
            batch_size=512,
            context_length=8192,
            lr=6e-4,
            min_lr_ratio=0.0,
            schedule="ws",
            decay_ratio=0.0,
        ),
        notes=(
            *_READINGS,
            "Family qwen2 and tied embeddings are Qwen2.5-1.5B's, whose shape Table 8 prints; both are ours.",
            "The vocabulary is padded to 152064 (Qwen2.5-1.5B itself: 151936), as for the 6.5B of tables.",
            "min lr is printed as 0, but with decay-ratio 0 the schedule never leaves its peak.",
        ),
    )


def _mixture(
    *, width: int, layers: int, heads: int, head_dim: int, experts: int, top_k: int, ffn: int, tied: bool
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "first_k_dense_replace": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": 4,
        "head_dim": head_dim,
        "use_qk_norm": True,
        "intermediate_size": 10944,
        "moe_intermediate_size": ffn,
        "n_routed_experts": experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": top_k,
        "tie_word_embeddings": tied,
        "num_nextn_predict_layers": 0,
    }


def _mixture_recipe(tokens: int) -> Recipe:
    return Recipe(
        tokens=tokens,
        batch_size=1024,
        context_length=8192,
        lr=4.2e-4,
        min_lr_ratio=1.0,
        schedule="ws",
        decay_ratio=0.0,
    )


_MIXTURE_NOTES = (
    *_READINGS,
    "Family glm4_moe (grouped-query attention, dense first layer, routed and shared experts), its q/k norm "
    "and untied embeddings are ours; the paper names none.",
    "The head width is not printed. 80 is ours: with it the activated parameters round to the published 110M "
    "and 250M (64, the common width, gives 105M and 243M).",
    "Activated and total parameters are counted without embeddings and head, as the paper's footnote 1 says.",
)


def a110m_t1_3b() -> Preset:
    """110M activated of 1.3B (Table 9)."""
    return Preset(
        name="a110m-t1.3b",
        group="paper",
        summary="Mixture A110m-T1.3b (Table 9); JTok's 1.5B-A250M",
        model_type="glm4_moe",
        vocab_size=QWEN2_VOCAB,
        backbone=_mixture(
            width=512, layers=12, heads=8, head_dim=80, experts=144, top_k=8, ffn=512, tied=False
        ),
        recipe=_mixture_recipe(300 * _BILLION),
        notes=_MIXTURE_NOTES,
    )


def a250m_t3b() -> Preset:
    """250M activated of 3B (Table 9)."""
    return Preset(
        name="a250m-t3b",
        group="paper",
        summary="Mixture A250m-T3b (Table 9); JTok's 3.2B-A0.5B",
        model_type="glm4_moe",
        vocab_size=QWEN2_VOCAB,
        backbone=_mixture(
            width=768, layers=18, heads=16, head_dim=80, experts=144, top_k=8, ffn=512, tied=False
        ),
        recipe=_mixture_recipe(500 * _BILLION),
        notes=_MIXTURE_NOTES,
    )


def jtok_17b_a2b() -> Preset:
    """2B activated of 17B (JTok)."""
    return Preset(
        name="17b-a2b",
        group="paper",
        summary="JTok's mixture 17B-A2B",
        model_type="glm4_moe",
        vocab_size=QWEN2_VOCAB,
        backbone=_mixture(
            width=2048, layers=28, heads=16, head_dim=128, experts=64, top_k=6, ffn=1536, tied=True
        ),
        recipe=_mixture_recipe(570 * _BILLION),
        notes=(
            "Published: 28 layers, width 2048, 64 routed + 1 shared expert, top-6, 570B tokens.",
            "Ours: family, 16 query and 4 key/value heads of width 128, a dense first layer of 10944, "
            "experts of 1536, tied embeddings. With them 17B and 2B come out, with or without embeddings.",
            "Ours too: the optimizer, schedule, batch and context, which are those of Table 9.",
        ),
    )


BUILDERS = (dense_s, dense_m, dense_l, dense_xl, a110m_t1_3b, a250m_t3b, jtok_17b_a2b)
