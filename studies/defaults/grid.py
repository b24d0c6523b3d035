"""Which runs the defaults study makes: sizes, stages, and the options that each run varies."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from retoken.config import ModulatorConfig, MoRTConfig, ReTokenConfig


@dataclass(frozen=True, kw_only=True)
class Size:
    """A backbone and how long it trains."""

    preset: str
    vocab_size: int
    lr: float
    """Peak rate, the best of stage "lr" for the baseline."""
    steps: int = 300
    batch_size: int = 16
    context_length: int = 128


SIZES = {
    "xs": Size(preset="cpu-xs", vocab_size=4096, lr=8e-3),
    "s": Size(preset="cpu-s", vocab_size=4096, lr=2e-3),
    "xs-long": Size(preset="cpu-xs", vocab_size=4096, lr=8e-3, steps=1200),
}
SHORT = ("xs", "s")
"""Sizes of every stage but "longer"."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the study."""

    stage: str
    size: str
    variant: str
    seed: int
    lr: float
    norm: str = ""
    init_scale: float = 0.0
    init_std: float = 0.0
    table_lr_mult: float = 1.0
    table_weight_decay: float = 0.0
    table_optimizer: str = ""
    """"": dense AdamW."""

    def modulator(self) -> ModulatorConfig | None:
        """What is attached."""
        kind: Any = {"baseline": None, "retoken": ReTokenConfig, "mort": MoRTConfig}[self.variant]
        return kind and kind(norm=self.norm, init_scale=self.init_scale, init_std=self.init_std)

    @property
    def name(self) -> str:
        """Its folder: everything but the stage, so that stages share runs."""
        values = {k: v for k, v in asdict(self).items() if k != "stage"}
        return "_".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values.values() if v != "")


def _attached(stage: str, size: str, variant: str, seed: int, **options: Any) -> Trial:
    centre: dict[str, Any] = {"norm": "rms", "init_scale": 1.0, "init_std": 0.02}
    return Trial(stage=stage, size=size, variant=variant, seed=seed, lr=SIZES[size].lr, **centre | options)


def learning_rates() -> list[Trial]:
    """The baseline's rate is tuned first, and then kept for everyone."""
    rates = {"xs": (4e-3, 8e-3, 16e-3), "s": (2e-3, 4e-3)}
    return [
        Trial(stage="lr", size=size, variant="baseline", seed=0, lr=lr)
        for size, some in rates.items()
        for lr in some
    ]


def screen() -> list[Trial]:
    """The small size, one seed: norm x initial s, then initial E x table rate, then weight decay."""
    trials = []
    for variant in ("retoken", "mort"):
        for norm in ("rms", "l2"):
            trials += [
                _attached("screen", "xs", variant, 0, norm=norm, init_scale=s) for s in (0.0, 0.3, 1.0, 3.0)
            ]
        spreads = (0.02, 1.0) if variant == "retoken" else (0.02,)
        trials += [
            _attached("screen", "xs", variant, 0, init_std=std, table_lr_mult=m)
            for std in spreads
            for m in (1.0, 5.0, 20.0)
        ]
        trials += [_attached("screen", "xs", variant, 0, table_weight_decay=w) for w in (0.01, 0.1)]
    return _once(trials)


CANDIDATES: dict[str, dict[str, Any]] = {
    "literal": {"norm": "l2", "init_scale": 1.0},
    "identity": {"norm": "rms", "init_scale": 0.0, "table_lr_mult": 5.0},
    "rms, rate 5": {"norm": "rms", "init_scale": 1.0, "table_lr_mult": 5.0},
    "rms, rate 20": {"norm": "rms", "init_scale": 1.0, "table_lr_mult": 20.0},
    "wide E": {"norm": "rms", "init_scale": 1.0, "init_std": 1.0, "table_lr_mult": 20.0},
    "decay": {"norm": "rms", "init_scale": 1.0, "table_lr_mult": 5.0, "table_weight_decay": 0.1},
}
"""What both sizes and two seeds decide between."""


def confirm() -> list[Trial]:
    """The candidates and the baseline, at both sizes, on two seeds."""
    trials = []
    for size in SHORT:
        for seed in (0, 1):
            trials.append(Trial(stage="confirm", size=size, variant="baseline", seed=seed, lr=SIZES[size].lr))
            for variant in ("retoken", "mort"):
                trials += [
                    _attached("confirm", size, variant, seed, **options) for options in CANDIDATES.values()
                ]
    return trials


ROW_SPARSE: dict[str, dict[str, Any]] = {
    "touched rows, rate 5": {"table_optimizer": "row_adamw", "table_lr_mult": 5.0},
    "touched rows, rate 20": {"table_optimizer": "row_adamw", "table_lr_mult": 20.0},
    "one state a row, rate 5": {"table_optimizer": "row_wise", "table_lr_mult": 5.0},
}
"""The same start trained by the rows a batch touches, against dense AdamW at rate 5 of stage "confirm"."""


def row_sparse() -> list[Trial]:
    """The row-sparse optimizers, at both sizes, on two seeds."""
    return [
        _attached("rows", size, variant, seed, **options)
        for options in ROW_SPARSE.values()
        for size in SHORT
        for seed in (0, 1)
        for variant in ("retoken", "mort")
    ]


def longer() -> list[Trial]:
    """Four times the tokens at the small size: whether what the tables are trained by still matters then."""
    size, trials = "xs-long", []
    for seed in (0, 1):
        trials.append(Trial(stage="longer", size=size, variant="baseline", seed=seed, lr=SIZES[size].lr))
        trials += [
            _attached("longer", size, variant, seed, table_optimizer=optimizer, table_lr_mult=5.0)
            for optimizer in ("", "row_adamw", "row_wise")
            for variant in ("retoken", "mort")
        ]
    return trials


def _once(trials: list[Trial]) -> list[Trial]:
    return list({trial.name: trial for trial in trials}.values())


STAGES = {"lr": learning_rates, "screen": screen, "confirm": confirm, "rows": row_sparse, "longer": longer}


def all_trials(stage: str) -> list[Trial]:
    """The runs of one stage; `replace` gives shared runs the stage they are shown in."""
    return [replace(trial, stage=stage) for trial in STAGES[stage]()]
