"""`retoken train`: one run, on one process or under torchrun."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from retoken import presets
from retoken.cli.options import as_json
from retoken.cli.train_view import TrainView, print_result
from retoken.compare.variants import VARIANTS, WIDE, attached
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.errors import ConfigError
from retoken.train.config import BASELINE, TrainConfig
from retoken.train.tables import TableOptions

# Options of the command that are no options of `TrainConfig`, or that are worked out from others.
_OWN = ("preset", "model", "out", "retoken", "mort", "size", "json")


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train one model: a preset's backbone from random weights, or a pretrained one, plain or with tables.

    Options of the recipe stand in for the preset's. The same command given again continues an interrupted
    run; a finished one only says how it ended. Under torchrun, the batch is shared by the processes.
    """

    preset: Annotated[str, tyro.conf.Positional] = ""
    """Backbone by preset name; `retoken presets` lists them. Or give --model."""
    data: Path
    """Token store written by `retoken prepare`."""
    variant: str = "baseline"
    """What is attached: nothing (baseline), retoken, mort, or a rival, as `retoken compare --variants` has
    them. The best found is additive_both with --size 5 (studies/matched)."""
    size: float = 1.0
    """Numbers in the tables of a rival over those of ReToken."""
    trains: Literal["all", "attached"] = "all"
    """What is trained: everything, or only what is attached, the backbone staying as it is."""
    model: str = ""
    """Pretrained backbone in place of a preset: a folder, or a name on the Hugging Face hub."""
    out: Path | None = None
    """Run folder; without it out/PRESET-VARIANT-seedN."""
    seed: int = 0
    """Start values and data order."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; "auto": a GPU where there is one."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves PyTorch's choice."""
    json: bool = False
    """Print the result as one JSON object."""

    tokens: int | None = None
    """Training tokens."""
    steps: int | None = None
    """Optimizer steps, in place of --tokens."""
    batch_size: int | None = None
    """Sequences per optimizer step, over all processes."""
    micro_batch_size: int | None = None
    """Sequences per forward pass; a smaller one saves memory and gives the same result."""
    context_length: int | None = None
    """Tokens per sequence."""
    lr: float | None = None
    """Peak learning rate of the backbone."""
    min_lr_ratio: float | None = None
    """Last learning rate over the peak, where the schedule decays."""
    schedule: Literal["cosine", "wsd", "ws"] | None = None
    """Learning-rate schedule: cosine, warm-up-stable-decay, warm-up-stable."""
    warmup_ratio: float | None = None
    """Share of the steps that warm up."""
    decay_ratio: float | None = None
    """Share of the steps that decay."""
    betas: tuple[float, float] | None = None
    """AdamW's decay of the gradient's first and second moment."""
    adam_eps: float | None = None
    """Added to AdamW's denominator."""
    weight_decay: float | None = None
    """AdamW's decay of matrices; vectors and embeddings have none."""
    grad_clip: float | None = None
    """Largest global norm of the gradient; 0: no clipping."""
    table_lr_mult: float | None = None
    """Learning rate of the token tables over --lr."""
    table_weight_decay: float | None = None
    """Decay of the token tables."""
    scale_lr_mult: float | None = None
    """Learning rate of the scales over --lr."""
    tables: TableOptions = field(default_factory=TableOptions)
    """How the token tables are trained, and where they live."""
    data_parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes share the backbone: a copy in each, or divided."""
    timeout: int = 600
    """Seconds after which processes that wait for another give up."""
    balance_over: Literal["batch", "pass"] | None = None
    """MoRT's balance loss over the whole batch, or over each forward pass: cheaper with micro-batches."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of forward and backward; parameters stay float32."""
    compile: Literal["auto", "on", "off"] | None = None
    """torch.compile; "auto": where the run is long enough to earn it back."""
    activation_checkpointing: bool | None = None
    """Recompute each layer in the backward pass: less memory, more time."""
    eval_every: int | None = None
    """Steps between evaluations on held-out text; 0: at the end only."""
    eval_tokens: int | None = None
    """Held-out tokens per evaluation; 0: all of them."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; 0: at the end and when interrupted."""
    keep: int | None = None
    """Newest checkpoints that stay."""
    log_every: int | None = None
    """Steps per line of metrics."""
    retoken: ReTokenConfig = field(default_factory=ReTokenConfig)
    """How ReToken is attached."""
    mort: MoRTConfig = field(default_factory=MoRTConfig)
    """How MoRT is attached."""

    def run(self) -> int:
        """Train and print the result; returns the exit code."""
        config = self.config()
        from retoken.train.loop import train

        leads = is_first_process()
        with TrainView(config) if leads else nullcontext() as view:
            result = train(config, on_event=view.event if view else None)
        if leads and self.json:
            print(as_json(asdict(result)))
        elif leads:
            print_result(result)
        return 0

    def config(self) -> TrainConfig:
        """The preset's recipe with the given options in place of its own.

        Raises:
            ConfigError: Options contradict each other, or a value is not accepted.
        """
        if not self.preset and not self.model:
            raise ConfigError(f"preset is missing; accepted: {', '.join(presets.names())}, or --model")
        if self.steps is not None and self.tokens is not None:
            raise ConfigError("--steps and --tokens are both given; accepted: one of them")
        preset = presets.get(self.preset) if self.preset else None
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OWN}
        given = {name: value for name, value in own.items() if value is not None}
        values = preset.recipe.under(given) if preset else given
        name = preset.name if preset else Path(self.model).name
        out = self.out or Path("out") / f"{name}-{self.variant}-seed{self.seed}"
        start = {"preset": preset.name if preset else "", "model": self.model}
        modulator = self._modulator()
        values["variant"] = modulator.type if modulator else BASELINE
        return TrainConfig(out=out, modulator=modulator, **start, **values)

    def _modulator(self) -> ModulatorConfig | None:
        found, retoken, mort = self._attached(), ReTokenConfig(), MoRTConfig()
        options: tuple[tuple[str, bool, dict[str, Any], str], ...] = (
            ("--retoken.*", self.retoken != retoken, {"retoken": retoken}, "--variant retoken or made of it"),
            ("--mort.*", self.mort != mort, {"mort": mort}, "--variant mort or made of it"),
            ("--size", self.size != 1.0, {"size": 2 * self.size}, "a rival whose tables have a size"),
        )
        for name, given, other, accepted in options:
            if given and replace(self, **other)._attached() == found:
                raise ConfigError(f"{name} is given with --variant {self.variant}; accepted: {accepted}")
        return found

    def _attached(self) -> ModulatorConfig | None:
        accepted = [name for name in VARIANTS if name != WIDE]
        if self.variant not in accepted:
            raise ConfigError(f"variant is {self.variant!r}; accepted: {', '.join(accepted)}")
        return attached(self.variant, self.retoken, self.mort, self.size)


def is_first_process() -> bool:
    """Whether this process speaks: the only one, or torchrun's first."""
    import os

    return int(os.environ.get("RANK", "0")) == 0
