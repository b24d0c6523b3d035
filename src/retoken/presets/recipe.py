"""What a preset is: a backbone by its Hugging Face family and shape, and the recipe it is trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from transformers import AutoConfig, PretrainedConfig

from retoken.errors import ConfigError

Group = Literal["paper", "cpu"]
ScheduleName = Literal["cosine", "wsd", "ws"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Options of a training run that belong to the backbone's size; the names are those of `TrainConfig`."""

    tokens: int
    """Training tokens."""
    batch_size: int
    """Sequences per optimizer step."""
    context_length: int
    """Tokens per sequence."""
    lr: float
    """Peak learning rate."""
    min_lr_ratio: float
    """Last learning rate over the peak, where the schedule decays."""
    schedule: ScheduleName
    """"cosine", "wsd" (warm-up, stable, decay) or "ws" (warm-up, stable)."""
    warmup_ratio: float = 0.05
    """Share of the steps that warm up."""
    decay_ratio: float = 0.95
    """Share of the steps that decay; 0: none do."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's (beta1, beta2)."""
    weight_decay: float = 0.1
    """AdamW's decoupled decay of matrices."""
    grad_clip: float = 1.0
    """Largest global norm of the gradient."""
    eval_every: int = 0
    """Steps between evaluations; 0: at the end only."""
    eval_tokens: int = 0
    """Held-out tokens per evaluation; 0: all of them."""

    def __post_init__(self) -> None:
        for name in ("tokens", "batch_size", "context_length"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} is {value!r}; accepted: an integer from 1")
        if self.schedule not in get_args(ScheduleName):
            raise ConfigError(f"schedule is {self.schedule!r}; accepted: {', '.join(get_args(ScheduleName))}")
        if self.schedule == "ws" and self.decay_ratio != 0:
            raise ConfigError(
                f"decay_ratio is {self.decay_ratio} with schedule ws; accepted: 0, which is what ws means"
            )
        if self.warmup_ratio + self.decay_ratio > 1:
            raise ConfigError(
                f"warmup_ratio + decay_ratio is {self.warmup_ratio + self.decay_ratio}; accepted: at most 1"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_size * self.context_length

    @property
    def steps(self) -> int:
        """Optimizer steps that `tokens` fills."""
        return self.tokens // self.tokens_per_step

    def to_dict(self) -> dict[str, Any]:
        """Keyword arguments for `TrainConfig`."""
        return asdict(self)

    def under(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments for `TrainConfig`: these, and what is given in their place.

        The recipe's share of decaying steps is of its own schedule and warm-up: with others it is theirs.
        """
        values = {**self.to_dict(), **given}
        if "decay_ratio" not in given and {"schedule", "warmup_ratio"} & set(given):
            del values["decay_ratio"]
        return values


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """A backbone with random weights, and its recipe."""

    name: str
    """What it is asked for by."""
    group: Group
    """"paper": published, far beyond a workstation; "cpu": ours, for two cores."""
    summary: str
    """One line: what it is and where it comes from."""
    model_type: str
    """Hugging Face family."""
    vocab_size: int
    """Token ids: rows of the embedding and of every table."""
    backbone: Mapping[str, Any]
    """Arguments of the family's configuration, without the vocabulary."""
    recipe: Recipe
    """How it is trained."""
    notes: tuple[str, ...] = field(default=())
    """What is not in the paper, or can be read in two ways, and what was chosen."""

    def __post_init__(self) -> None:
        if self.group not in get_args(Group):
            accepted = ", ".join(get_args(Group))
            raise ConfigError(f"group of preset {self.name} is {self.group!r}; accepted: {accepted}")

    def hf_config(self, vocab_size: int | None = None) -> PretrainedConfig:
        """A new configuration for `AutoModelForCausalLM.from_config`.

        Args:
            vocab_size: token ids of the corpus's tokenizer; None: the preset's own.

        Raises:
            ConfigError: `vocab_size` is not a positive integer.
        """
        size = self.vocab_size if vocab_size is None else vocab_size
        if type(size) is not int or size < 1:
            raise ConfigError(f"vocab_size is {size!r}; accepted: an integer from 1")
        values = {
            "max_position_embeddings": self.recipe.context_length,
            "attn_implementation": "sdpa",
            # The families' own ids may lie outside a small vocabulary.
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **self.backbone,
        }
        return AutoConfig.for_model(self.model_type, vocab_size=size, **values)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy."""
        return {
            "name": self.name,
            "group": self.group,
            "summary": self.summary,
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "backbone": dict(self.backbone),
            "recipe": self.recipe.to_dict(),
            "notes": list(self.notes),
        }
