"""What one training run is: every option, its default, and what is accepted."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from retoken.config import ModulatorConfig, TableConfig, config_from_dict
from retoken.errors import ConfigError
from retoken.optim import GroupOptions, Schedule
from retoken.optim.schedule import Shape
from retoken.train.tables import TableOptions

FORMAT_VERSION = 1
BASELINE = "baseline"
DType = Literal["float32", "bfloat16"]
Compile = Literal["auto", "on", "off"]
DataParallel = Literal["ddp", "fsdp"]
BalanceOver = Literal["batch", "pass"]
Device = Literal["auto", "cpu", "cuda"]
Trains = Literal["all", "attached"]

_POSITIVE = ("batch_size", "context_length", "lr", "log_every", "keep", "adam_eps", "timeout")
_NOT_NEGATIVE = (
    *("steps", "tokens", "micro_batch_size", "seed", "weight_decay", "grad_clip", "table_lr_mult", "threads"),
    *("table_weight_decay", "scale_lr_mult", "eval_every", "eval_tokens", "checkpoint_every"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One run. Options from `steps` on are the recipe; a preset fills them (`retoken.presets`)."""

    out: Path
    """Run folder: config, metrics, checkpoints, the trained model."""
    data: Path
    """Token store written by `retoken prepare`."""
    preset: str = ""
    """Backbone by preset name, from random weights; `retoken presets` lists them. Or give `model`."""
    model: str = ""
    """Backbone from pretrained weights: a folder, or a name on the Hugging Face hub. Or give `preset`."""
    variant: str = BASELINE
    """"baseline": the backbone as it is; "retoken", "mort" or a rival's type: with that attached."""
    modulator: ModulatorConfig | None = None
    """How the variant is attached; None: the variant's defaults."""
    trains: Trains = "all"
    """What is trained: everything, or only what is "attached", the backbone staying as it is."""
    seed: int = 0
    """Start values and data order."""
    device: Device = "auto"
    """Where to compute; "auto": a GPU where there is one."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves PyTorch's choice."""

    steps: int = 0
    """Optimizer steps; 0: as many as `tokens` fills."""
    tokens: int = 0
    """Training tokens, used where `steps` is 0."""
    batch_size: int = 32
    """Sequences per optimizer step, over all processes."""
    micro_batch_size: int = 0
    """Sequences per forward pass of one process; 0: its whole share. The result is the same."""
    context_length: int = 256
    """Tokens per sequence."""
    lr: float = 1e-3
    """Peak learning rate of the backbone."""
    min_lr_ratio: float = 0.1
    """Last learning rate over the peak, where the schedule decays."""
    schedule: Shape = "cosine"
    """"cosine", "wsd" (warm-up, stable, straight decay) or "ws" (warm-up, stable)."""
    warmup_ratio: float = 0.05
    """Share of the steps that warm up."""
    decay_ratio: float | None = None
    """Share of the steps that decay; None: all behind the warm-up (cosine), 0.2 (wsd), 0 (ws)."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW: decay of the gradient's first and second moment."""
    adam_eps: float = 1e-8
    """AdamW: added to the denominator."""
    weight_decay: float = 0.1
    """AdamW: decoupled decay of matrices; vectors and embeddings have none."""
    grad_clip: float = 1.0
    """Largest global norm of the gradient; 0: no clipping."""
    table_lr_mult: float = 5.0
    """Learning rate of the token tables over `lr`; see studies/defaults."""
    table_weight_decay: float = 0.0
    """Decoupled decay of the token tables."""
    scale_lr_mult: float = 1.0
    """Learning rate of the scales over `lr`."""
    tables: TableOptions = field(default_factory=TableOptions)
    """How the token tables are trained, and where they live."""
    data_parallel: DataParallel = "ddp"
    """How several processes share the backbone: a copy in each ("ddp"), or divided ("fsdp")."""
    timeout: int = 600
    """Seconds after which processes that wait for another give up."""
    balance_over: BalanceOver = "batch"
    """MoRT's balance loss (Eq. 21) over the whole batch, or over each forward "pass" of all processes. With
    micro-batches, the former counts them in a forward pass of its own first: a third of the compute more."""
    dtype: DType = "float32"
    """Arithmetic of forward and backward; "bfloat16" is autocast over float32 parameters."""
    compile: Compile = "auto"
    """torch.compile; "auto": where a run of this length earns the compilation back."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    eval_every: int = 0
    """Steps between evaluations on held-out text; 0: at the end only."""
    eval_tokens: int = 0
    """Held-out tokens per evaluation; 0: all of them."""
    checkpoint_every: int = 0
    """Steps between checkpoints; 0: at the end and on interruption only."""
    keep: int = 2
    """Newest checkpoints that stay."""
    log_every: int = 10
    """Steps per line of metrics; a line holds their mean loss."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_numbers(self)
        if bool(self.preset) == bool(self.model):
            raise ConfigError(
                f"preset is {self.preset!r} and model is {self.model!r}; accepted: exactly one of the two"
            )
        if self.steps == 0 and self.tokens < self.tokens_per_step:
            raise ConfigError(
                f"tokens is {self.tokens} and steps is 0; accepted: steps from 1, or tokens from "
                f"{self.tokens_per_step} (batch_size * context_length)"
            )
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"micro_batch_size is {self.micro_batch_size}; accepted: a divisor of {self.batch_size}"
            )
        _check_modulator(self)
        self.lr_schedule()

    @property
    def tokens_per_step(self) -> int:
        """Tokens the loss of one step is taken over."""
        return self.batch_size * self.context_length

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.steps or self.tokens // self.tokens_per_step

    @property
    def attached(self) -> ModulatorConfig | None:
        """What is attached: `modulator`, or the variant's defaults; None for the baseline."""
        if self.modulator is not None:
            return self.modulator
        return None if self.variant == BASELINE else TableConfig.known[self.variant]()

    @property
    def arithmetic(self) -> torch.dtype:
        """The type that forward and backward compute in."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    def lr_schedule(self) -> Schedule:
        """The schedule over this run's steps."""
        return Schedule(
            shape=self.schedule,
            total_steps=self.total_steps,
            warmup_ratio=self.warmup_ratio,
            decay_ratio=self.decay_ratio,
            min_lr_ratio=self.min_lr_ratio,
        )

    def group_options(self) -> GroupOptions:
        """Rates and decays by parameter group."""
        return GroupOptions(
            lr=self.lr,
            weight_decay=self.weight_decay,
            table_lr_mult=self.table_lr_mult,
            table_weight_decay=self.table_weight_decay,
            scale_lr_mult=self.scale_lr_mult,
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy; `from_dict` turns it back."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        attached = self.attached
        values |= {"out": str(self.out), "data": str(self.data), "betas": list(self.betas)}
        values["modulator"] = attached.to_dict() if attached else None
        values["tables"] = self.tables.to_dict()
        return {"type": "train", "format_version": FORMAT_VERSION, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The configuration `to_dict` wrote.

        Raises:
            ConfigError: Not such a dict, an unknown option, or a newer format_version.
        """
        if not isinstance(values, dict) or values.get("type") != "train":
            raise ConfigError(
                "training config: found no 'type': 'train'; accepted: a dict written by to_dict"
            )
        if values.get("format_version") != FORMAT_VERSION:
            raise ConfigError(
                f"format_version is {values.get('format_version')!r}; accepted: {FORMAT_VERSION}"
            )
        rest = {key: value for key, value in values.items() if key not in ("type", "format_version")}
        unknown = sorted(set(rest) - {field.name for field in fields(cls)})
        if unknown:
            raise ConfigError(f"option {unknown[0]!r} of a training config is unknown")
        rest |= {"out": Path(rest["out"]), "data": Path(rest["data"]), "betas": tuple(rest["betas"])}
        rest["tables"] = TableOptions(**rest.get("tables", {"optimizer": "adamw"}))
        if rest.get("modulator"):
            rest["modulator"] = config_from_dict(rest["modulator"])
        return cls(**rest)


def _check_choices(config: TrainConfig) -> None:
    if config.variant not in (variants := (BASELINE, *TableConfig.known)):
        raise ConfigError(f"variant is {config.variant!r}; accepted: {', '.join(variants)}")
    choices = {"schedule": Shape, "dtype": DType, "compile": Compile, "device": Device}
    choices |= {"data_parallel": DataParallel, "balance_over": BalanceOver, "trains": Trains}
    for name, kind in choices.items():
        value, accepted = getattr(config, name), get_args(kind)
        if value not in accepted:
            raise ConfigError(f"{name} is {value!r}; accepted: {', '.join(accepted)}")


def _check_numbers(config: TrainConfig) -> None:
    for option in fields(config):
        value = getattr(config, option.name)
        if option.type == "int" and type(value) is not int:
            raise ConfigError(f"{option.name} is {value!r}; accepted: an integer")
    for name in (*_POSITIVE, *_NOT_NEGATIVE):
        value = getattr(config, name)
        low = name in _POSITIVE
        if not math.isfinite(value) or value < 0 or (low and value == 0):
            raise ConfigError(f"{name} is {value}; accepted: {'above 0' if low else '0 or more'}")
    if len(config.betas) != 2 or not all(0 <= beta < 1 for beta in config.betas):
        raise ConfigError(f"betas is {config.betas}; accepted: two numbers from 0 to below 1")


def _check_modulator(config: TrainConfig) -> None:
    found = config.modulator.type if config.modulator else config.variant
    if found != config.variant:
        raise ConfigError(
            f"modulator is a {found} config with variant {config.variant!r}; accepted: one of its kind"
        )
    if config.trains == "attached" and config.variant == BASELINE:
        raise ConfigError("trains is 'attached' with variant 'baseline'; accepted there: 'all'")
