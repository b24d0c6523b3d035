"""Sizes and FLOPs counted from a configuration, on the real modules, without memory for a single weight.

Three parameter counts are in use, and all are given:

- `backbone_params`: everything, embeddings and head included (what "190M" means for the dense backbones).
- `total_params`: without vocabulary embedding and head (the "T1.3b" of A110m-T1.3b).
- `compute_params`: N_c of Eq. 9 and 12, activated, without embedding and head (the "A110m"). Of routed
  experts, top-k over their number counts. eta = N_n / N_c has it in the denominator.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from retoken.config import ModulatorConfig
from retoken.errors import ConfigError
from retoken.presets.recipe import Preset

TRAINING = 3
"""A training step's FLOPs over a forward pass's: the backward takes two products for each of its."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Parameters and FLOPs of a backbone, and of what is attached to it."""

    backbone_params: int
    """All parameters of the backbone; tied ones once."""
    embedding_params: int
    """Vocabulary embedding, head (once when tied) and learned positions."""
    activated_params: int
    """Parameters a token uses, embeddings and head included in full."""
    table_params: int
    """N_n: token-indexed rows. Scales and routers are `other_params`."""
    other_params: int
    """Scales and, with MoRT, routers."""
    rho: float
    """Rows used per token over rows owned: K / n_e with MoRT, 1 with ReToken, 0 with nothing attached."""
    backbone_flops_per_token: float
    """Training FLOPs per token of the backbone, see `backbone_flops`."""
    head_flops_per_token: float
    """Of these, the head's."""
    attention_flops_per_token: float
    """Of these, attention's scores and weighted sums, which grow with the context."""
    table_flops_per_token: float
    """Training FLOPs per token of the attached modulators, see `table_flops`."""

    @property
    def total_params(self) -> int:
        """The backbone without vocabulary embedding, head and learned positions."""
        return self.backbone_params - self.embedding_params

    @property
    def compute_params(self) -> int:
        """N_c: activated parameters without vocabulary embedding and head (Sec. 3.4)."""
        return self.activated_params - self.embedding_params

    @property
    def stored_params(self) -> int:
        """Everything a checkpoint holds: backbone, tables, scales, routers."""
        return self.backbone_params + self.table_params + self.other_params

    @property
    def eta(self) -> float:
        """N_n / N_c (Eq. 12)."""
        return self.table_params / self.compute_params

    @property
    def kaplan_flops_per_token(self) -> int:
        """6 N_c: training FLOPs per token as Sec. 3.4 and Kaplan count them, without head and attention."""
        return 2 * TRAINING * self.compute_params

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token with what is attached."""
        return self.backbone_flops_per_token + self.table_flops_per_token

    def to_dict(self) -> dict[str, int | float]:
        """Every number by name."""
        derived = ("total_params", "compute_params", "stored_params", "eta", "kaplan_flops_per_token")
        derived += ("flops_per_token",)
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """What counting needs of a backbone, measured once on its modules."""

    params: int
    embedding_params: int
    activated_params: int
    flops_per_token: float
    """Of a forward pass."""
    head_flops: float
    """Of these, the head's."""
    attention_flops: float
    """Of these, attention's."""
    vocab_size: int
    hidden_size: int
    num_layers: int

    @classmethod
    def of(
        cls,
        source: Preset | PretrainedConfig,
        *,
        vocab_size: int | None = None,
        context_length: int | None = None,
    ) -> Backbone:
        """Measure a preset or a Hugging Face configuration; see `count`."""
        config = source.hf_config(vocab_size) if isinstance(source, Preset) else source
        text: Any = config.get_text_config()
        context = context_length or getattr(text, "max_position_embeddings", None) or 0
        if isinstance(source, Preset):
            context = context_length or source.recipe.context_length
        model = build_on_meta(config)
        own = _backbone(model)
        return cls(
            params=sum(p.numel() for _, p in own),
            embedding_params=sum(p.numel() for p in _embedding_parameters(model).values()),
            activated_params=sum(_activated(name, p, text) for name, p in own),
            flops_per_token=backbone_flops(model, text, context),
            head_flops=head_flops(model),
            attention_flops=attention_flops(text, context),
            vocab_size=model.get_input_embeddings().weight.shape[0],
            hidden_size=text.hidden_size,
            num_layers=text.num_hidden_layers,
        )

    def count(self, modulator: ModulatorConfig | None) -> Counts:
        """The numbers with `modulator` attached, or nothing."""
        depth = (self.hidden_size, self.num_layers)
        return Counts(
            backbone_params=self.params,
            embedding_params=self.embedding_params,
            activated_params=self.activated_params,
            table_params=modulator.table_params(self.vocab_size, *depth) if modulator else 0,
            other_params=modulator.other_params(*depth) if modulator else 0,
            rho=modulator.activation if modulator else 0.0,
            backbone_flops_per_token=TRAINING * self.flops_per_token,
            head_flops_per_token=TRAINING * self.head_flops,
            attention_flops_per_token=TRAINING * self.attention_flops,
            table_flops_per_token=TRAINING * table_flops(modulator, *depth),
        )


def count(
    source: Preset | PretrainedConfig,
    modulator: ModulatorConfig | None = None,
    *,
    vocab_size: int | None = None,
    context_length: int | None = None,
) -> Counts:
    """Count a backbone and what `modulator` would add to it.

    Args:
        source: a preset, or a Hugging Face configuration; tables it carries already are not counted.
        modulator: what is attached; None: nothing.
        vocab_size: in place of a preset's own.
        context_length: tokens per sequence, for attention's FLOPs; None: the recipe's, or all positions.

    Raises:
        ConfigError: the configuration is no causal language model's, or the modulator does not fit its depth.
    """
    return Backbone.of(source, vocab_size=vocab_size, context_length=context_length).count(modulator)


def build_on_meta(config: PretrainedConfig) -> Any:
    """The real module tree of a configuration, on the meta device: shapes without storage.

    Raises:
        ConfigError: the family has no causal language model.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ConfigError(
            f"model_type {config.model_type!r} gives no causal language model: {str(error).splitlines()[0]}"
        ) from error


def backbone_flops(model: Any, text: Any, context_length: int) -> float:
    """Forward FLOPs per token: 2 per activated matrix element, head included and lookups not, plus attention.

    A mixture's router is one of the matrices. Norms, activations, rotations and softmax, all O(d), are left
    out. It is what PyTorch's own counter finds, but for attention's positions that no token sees.
    """
    lookups = _embedding_parameters(model)
    inside = [
        _activated(name, p, text) for name, p in _backbone(model) if p.ndim >= 2 and id(p) not in lookups
    ]
    return 2 * sum(inside) + head_flops(model) + attention_flops(text, context_length)


def head_flops(model: Any) -> float:
    """Forward FLOPs per token of the head, tied or not."""
    return float(2 * model.get_output_embeddings().weight.numel())


def attention_flops(text: Any, context_length: int) -> float:
    """Forward FLOPs per token of scores and weighted sums: 2 per channel and visible position each.

    A token sees (context_length + 1) / 2 positions on average; a sliding window is not taken off.
    """
    score_width, value_width = _attention_widths(text)
    seen = (context_length + 1) / 2
    return 2 * seen * (score_width + value_width) * text.num_hidden_layers


def table_flops(modulator: ModulatorConfig | None, hidden_size: int, num_layers: int) -> float:
    """Forward FLOPs per token of what is attached, over the layers that carry a table (Eq. 7, Sec. 3.1)."""
    return modulator.flops_per_token(hidden_size, num_layers) if modulator else 0.0


def _backbone(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if not name.startswith("retoken.")]


def _embedding_parameters(model: Any) -> dict[int, torch.Tensor]:
    """Embedding modules' weights and the head's, by identity: a tied head is there once."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    return {id(p): p for p in (*weights, model.get_output_embeddings().weight)}


def _activated(name: str, parameter: nn.Parameter, text: Any) -> int:
    """How much of a parameter a token uses: all of it, or top-k of the routed experts."""
    if ".experts." not in name:
        return parameter.numel()
    options = ("num_local_experts", "n_routed_experts", "num_experts")
    experts = next(getattr(text, option) for option in options if getattr(text, option, None))
    return parameter.numel() * text.num_experts_per_tok // experts


def _attention_widths(text: Any) -> tuple[int, int]:
    """Channels of all heads that scores and values are taken over."""
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    latent = (getattr(text, "qk_nope_head_dim", None) or 0) + (getattr(text, "qk_rope_head_dim", None) or 0)
    return heads * (latent or width), heads * (getattr(text, "v_head_dim", None) or width)
