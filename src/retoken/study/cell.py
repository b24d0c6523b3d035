"""One run of a study, and the training run that it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from retoken.compare.folder import RunKey
from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig
from retoken.errors import CheckpointError
from retoken.presets import Counts
from retoken.study.config import StudyConfig
from retoken.train.config import TrainConfig

Stage = Literal["baseline", "optimum", "frontier", "ratio", "sparsity", "stored", "time"]
STAGES: tuple[str, ...] = get_args(Stage)
"""In the order they are run: the grid; its best sizes on more seeds; ReToken and MoRT there; more tables;
fewer of their rows used; and the two controls."""
CONTROLS = ("stored", "time")
KAPLAN_FLOPS = 6
"""Kaplan's training FLOPs per activated parameter and token: 2 forward, 4 backward."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run. Everything that decides its loss, beside the study's own recipe and its data."""

    name: str
    """Without the seed."""
    stage: Stage
    variant: str
    backbone: str
    """"dense" or "mixture"."""
    preset: str
    """The backbone's shape, a name of `retoken.presets`."""
    budget: float
    """Training FLOPs it is compared at."""
    seed: int
    num_modulators: int
    """n_e: rows a token owns in each layer; 1 with ReToken, 0 without tables."""
    top_k: int
    """K: rows used per token and layer."""
    steps: int
    tokens: int
    """D."""
    lr: float
    hidden_size: int
    layers: int
    compute_params: int
    """N_c, counted on the modules."""
    table_params: int
    """N_n."""
    stored_params: int
    flops_per_token: float
    """Counted, tables included; see `retoken.presets.count`."""
    provisional: bool = False
    """Its size is a guess until the grid's runs say which is best: counted in the cost, not run."""

    @property
    def key(self) -> RunKey:
        """For the runner."""
        return RunKey(self.name, self.seed)

    @property
    def id(self) -> str:
        """What `--only` takes; the name of its run folder."""
        return self.key.label

    @property
    def eta(self) -> float:
        """N_n / N_c that it really has."""
        return self.table_params / self.compute_params

    @property
    def rho(self) -> float:
        """K / n_e that it really has; 0 without tables."""
        return self.top_k / self.num_modulators if self.num_modulators else 0.0

    @property
    def flops(self) -> float:
        """6 N_c D."""
        return float(KAPLAN_FLOPS * self.compute_params * self.tokens)

    @property
    def flops_counted(self) -> float:
        """Counted training FLOPs: head, attention, router and tables included."""
        return self.flops_per_token * self.tokens

    def modulator(self) -> ModulatorConfig | None:
        """What is attached, with the defaults that studies/defaults chose."""
        return modulator_of(self.variant, self.num_modulators, self.top_k)

    def train_config(self, study: StudyConfig, *, data: Path, out: Path, **free: Any) -> TrainConfig:
        """The training run; `free`: options that change no result."""
        return TrainConfig(
            out=out,
            data=data,
            preset=self.preset,
            variant=self.variant,
            modulator=self.modulator(),
            seed=self.seed,
            steps=self.steps,
            batch_size=study.batch_size,
            context_length=study.context_length,
            lr=self.lr,
            min_lr_ratio=study.min_lr_ratio,
            warmup_ratio=study.warmup_ratio,
            weight_decay=study.weight_decay,
            table_lr_mult=study.table_lr_mult,
            eval_tokens=study.eval_tokens,
            compile="off",  # its kernels round in another order, and only long runs would have it
            device="cpu",
            log_every=max(1, min(20, self.steps // 50)),
            **free,
        )

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able copy with its id and a digest, so that a change by hand is noticed."""
        values = asdict(self)
        return {"id": self.id, **values, "digest": _digest(values)}

    @classmethod
    def from_dict(cls, values: dict[str, Any], path: Path) -> Cell:
        """The run `to_dict` wrote.

        Raises:
            CheckpointError: A field is missing or unknown, or a value was changed.
        """
        said = values.get("id", "without id")
        known = {field.name for field in fields(cls)}
        own = {name: value for name, value in values.items() if name not in ("id", "digest")}
        if set(own) != known:
            wrong = sorted(set(own) ^ known)[0]
            raise CheckpointError(f"{path}: run {said}: field {wrong!r} is missing or unknown")
        if values.get("digest") != _digest(own):
            raise CheckpointError(f"{path}: run {said} was changed by hand; accepted: what a plan wrote")
        return cls(**own)


def make_cell(
    study: StudyConfig,
    counts: Counts,
    *,
    label: str,
    stage: Stage,
    variant: str,
    backbone: str,
    preset: str,
    shape: tuple[int, int],
    budget: float,
    seed: int,
    tokens: float,
    rows: tuple[int, int] = (0, 0),
    provisional: bool = False,
) -> Cell:
    """A run of about so many tokens: a whole number of steps, the rate by the width.

    Args:
        label: What tells it from others of this budget, size and seed.
        shape: (width, layers).
        rows: (n_e, K).
    """
    steps = max(1, round(tokens / study.tokens_per_step))
    width, layers = shape
    return Cell(
        name=f"{label}-{budget_name(budget)}-{preset}",
        stage=stage,
        variant=variant,
        backbone=backbone,
        preset=preset,
        budget=budget,
        seed=seed,
        num_modulators=rows[0],
        top_k=rows[1],
        steps=steps,
        tokens=steps * study.tokens_per_step,
        lr=float(f"{study.rate(width):.4g}"),
        hidden_size=width,
        layers=layers,
        compute_params=counts.compute_params,
        table_params=counts.table_params,
        stored_params=counts.stored_params,
        flops_per_token=counts.flops_per_token,
        provisional=provisional,
    )


def modulator_of(variant: str, num_modulators: int, top_k: int) -> ModulatorConfig | None:
    """What a variant attaches."""
    if variant == "mort":
        return MoRTConfig(num_modulators=num_modulators, top_k=top_k)
    return ReTokenConfig() if variant == "retoken" else None


def budget_name(budget: float) -> str:
    """``6.00e11``, for names."""
    return f"{budget:.2e}".replace("e+", "e")


def firm(cell: Cell) -> Cell:
    """The same run, to be run."""
    return replace(cell, provisional=False)


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
